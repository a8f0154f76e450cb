# What is compiled has the types of its twin.
from tunnel_protocol.quic.datagrams import Datagrams as Datagrams
