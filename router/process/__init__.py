"""The process: assembles the packages of the router, starts, supervises, reloads and drains them."""
