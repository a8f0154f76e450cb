"""The protocols and plain values that several packages of the router share. Imports no other package of the router."""
