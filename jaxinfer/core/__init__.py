"""The nouns of jaxinfer: Model, Program, Rewrite, input specs, rule tables, errors."""
