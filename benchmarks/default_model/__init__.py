"""How the built-in model was made: its texts, tokenizer, training and card. None of it is in the wheel."""
