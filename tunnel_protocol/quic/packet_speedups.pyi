# What is compiled has the types of its twin.
from tunnel_protocol.quic.packets import Keys as Keys
from tunnel_protocol.quic.packets import make_keys as make_keys
from tunnel_protocol.quic.packets import open_packet as open_packet
from tunnel_protocol.quic.packets import read_ack as read_ack
from tunnel_protocol.quic.packets import read_stream_frames as read_stream_frames
from tunnel_protocol.quic.packets import seal_packet as seal_packet
from tunnel_protocol.quic.packets import seal_run as seal_run
from tunnel_protocol.quic.packets import stream_frame as stream_frame
