"""The committed control-plane code is what the compiler makes of the committed definitions."""

import pathlib
import runpy
import sys

import pytest

from tunnel_protocol.control import generate, llm_gateway_pb2, stargate_pb2


def test_generated_code_is_up_to_date() -> None:
    pytest.importorskip("grpc_tools")
    assert generate.stale_files() == []


def test_check_names_what_is_out_of_date(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    monkeypatch.setattr(generate, "stale_files", lambda: ["stargate_pb2.py"])
    assert generate.main() == 1
    assert "stargate_pb2.py" in capsys.readouterr().err
    monkeypatch.setattr(generate, "stale_files", list)
    assert generate.main() == 0


def test_command_exits_with_its_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grpc_tools")
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    monkeypatch.delitem(sys.modules, "tunnel_protocol.control.generate")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("tunnel_protocol.control.generate", run_name="__main__")
    assert caught.value.code == 0


def test_generating_writes_all_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("grpc_tools")
    targets: list[pathlib.Path] = []
    make = generate.generate
    monkeypatch.setattr(sys, "argv", ["generate"])
    monkeypatch.setattr(generate, "generate", targets.append)
    assert generate.main() == 0
    assert (targets[0] / "tunnel_protocol" / "control" / "stargate.proto").is_file()
    make(tmp_path)
    assert len(list((tmp_path / "tunnel_protocol" / "control").iterdir())) == 6


def test_definition_that_does_not_compile_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("grpc_tools")
    monkeypatch.setattr(generate, "PROTO_NAMES", ("missing.proto",))
    with pytest.raises(RuntimeError, match="protoc failed"):
        generate.generate(tmp_path)


def test_field_numbers_are_those_of_the_contract() -> None:
    def numbers(message: object) -> dict[int, str]:
        return {field.number: field.name for field in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]

    assert numbers(stargate_pb2.StargateInfo) == {
        1: "stargate_id",
        2: "advertise_addr",
        3: "http_advertise_addr",
        4: "grpc_pylon_dial_addr",
    }
    assert numbers(stargate_pb2.InferenceServerRegistration) == {
        1: "inference_server_id",
        2: "inference_server_url",
        3: "models",
        4: "reverse_tunnel",
        5: "cluster_id",
    }
    assert numbers(stargate_pb2.InferenceServerModelRegistration) == {1: "stats", 2: "status"}
    assert numbers(stargate_pb2.InferenceServerAck) == {1: "reverse_tunnel_target", 3: "reverse_tunnel_pylon_dial_addr"}
    assert sorted(numbers(stargate_pb2.ModelStats)) == list(range(1, 18))
    assert numbers(llm_gateway_pb2.AuthLlmWorkerRequest) == {1: "workerToken"}
    assert numbers(llm_gateway_pb2.AuthLlmWorkerResponse) == {1: "routingKey"}
    assert stargate_pb2.ListModelsRequest.DESCRIPTOR.fields_by_name["routing_key"].has_presence
