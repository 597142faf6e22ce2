"""A student's text in its teacher's tokens, cut as the teacher cuts it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from tokenizers import Tokenizer

from overproof.student.vocabulary import ABSENT, Vocabulary

NO_CHARACTER = "\ufffd"  # what bytes that are no text are read as


class Recut:
    """Cuts what a student said.

    Control tokens stay what they are, and text that spells one stays text. Bytes that are no
    character, as at the end of an answer that was cut off, stand for themselves.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self.control = {number for number, token in added.items() if token.special}

    def tokens(self, said: Sequence[int]) -> list[int]:
        """The teacher's tokens of a text in the student's; up to the first that it has none for."""
        found = list[int]()
        for own, theirs in self._parts(said):
            cut = theirs if theirs and theirs[0] in self.control else self._cut(own, theirs)
            found += cut
        return found[: found.index(ABSENT)] if ABSENT in found else found

    def _parts(self, said: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """Runs of control tokens and of others: the student's tokens and the teacher's."""
        pairs = list(zip(said, self.vocabulary.teacher_ids_V[list(said)].tolist(), strict=True))
        for _, run in groupby(pairs, lambda pair: pair[1] in self.control):
            own, theirs = zip(*run, strict=True)
            yield list(own), list(theirs)

    def _cut(self, own: list[int], theirs: list[int]) -> list[int]:
        """A text without control tokens: as far as it is text, as the teacher cuts it."""
        for end in range(len(own), 0, -1):
            text = self.vocabulary.tokenizer.decode(own[:end], skip_special_tokens=False)
            if NO_CHARACTER not in text:
                break
        else:
            return theirs
        cut: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        # A tokenizer that changes what it cuts is not asked.
        if self.tokenizer.decode(cut, skip_special_tokens=False) != text:
            return theirs
        return cut + theirs[end:]
