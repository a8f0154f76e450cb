"""`python -m benchmarks NAME [options]`: runs the benchmark in `benchmarks/NAME.py`; without a name it lists them."""

import importlib
import pkgutil
import sys

import benchmarks


def main(arguments: list[str]) -> int:
    """Call `run(args)` of a benchmark module, or list the modules; returns exit status 2 for an unknown name."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "__main__")
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m benchmarks NAME [options]; NAME --help tells the options of one")
        for name in names:
            print(f"  {name:<12} {(importlib.import_module(f'benchmarks.{name}').__doc__ or '').splitlines()[0]}")
        return 0
    if arguments[0] not in names:
        print(f"error: there is no benchmark '{arguments[0]}'; there are {', '.join(names)}", file=sys.stderr)
        return 2
    importlib.import_module(f"benchmarks.{arguments[0]}").run(arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
