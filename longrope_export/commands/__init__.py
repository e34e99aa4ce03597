"""One module a command: parse, build one options object, call the library, print the result."""
