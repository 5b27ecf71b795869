"""What customers type, whatever their keyboard has: for today's model, and for the rows before it."""

import unicodedata


def search_key(name: str) -> str:
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return " ".join(plain.casefold().split())
