"""The protocols and plain values that several packages of the router share. Imports none of them."""
