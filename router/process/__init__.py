"""The running router: assembles the packages, starts, supervises, reloads and drains them."""
