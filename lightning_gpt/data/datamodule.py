"""The LightningDataModule: connects sources, tokenizer, split and stream to a trainer."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from lightning_gpt.console import console, say
from lightning_gpt.data.batches import Batch, EvalBatches, EvalLanes, EvalRows, SizedTrainBatches, TrainBatches
from lightning_gpt.data.counting import Count, count, rows_at_most
from lightning_gpt.data.divide import Division, describe, divide, require, texts_of
from lightning_gpt.data.first_rows import repeated_rows
from lightning_gpt.data.lanes import LaneStream
from lightning_gpt.data.loader import load
from lightning_gpt.data.mark import Cursor, Mark
from lightning_gpt.data.packing import PACKINGS, PackingName
from lightning_gpt.data.prepared import PreparedCorpus, PreparedSource, open_prepared
from lightning_gpt.data.reader import Reader
from lightning_gpt.data.share import Share, hold_global_batch, share_of
from lightning_gpt.data.sources.base import Source, SourceBase
from lightning_gpt.data.sources.embedded import PythonReference, WikipediaSlice
from lightning_gpt.data.sources.files import Files  # noqa: F401 - a config may name every subclass imported here
from lightning_gpt.data.sources.hub import Hub  # noqa: F401
from lightning_gpt.data.split import Split, SplitBy, SplitName
from lightning_gpt.data.stream import Stream, evaluation_documents
from lightning_gpt.data.tokenizer import Tokenizer, TrainedVocabSize
from lightning_gpt.data.vocabulary import train_vocabulary
from lightning_gpt.errors import CallError
from lightning_gpt.options import Length, Range, Rows, Seed, ShareBelowOne, check_options


class TextData(L.LightningDataModule):
    """Text as batches of ``(batch_size, block_size)`` token ids and targets, in an exactly repeatable order.

    Args:
        sources: The sources of the documents; when omitted, the embedded corpus (a slice of Wikipedia and the Python
            Language Reference), which needs no network.
        prepared: A folder made by ``lightning-gpt prepare`` from these sources, with this tokenizer and these shares.
            The batches are the same, training starts in seconds, and nothing is tokenised while training.
        tokenizer: ``gpt2``, the path of a ranks file in tiktoken's format, of a ``tokenizer.json`` or of a checkpoint
            (``.ckpt``) that has one, or the size of a byte-level BPE vocabulary to train on the training documents and
            save with the run.
        block_size: Inputs per row, in tokens. Linked to the model's.
        batch_size: Rows per process and micro-batch.
        global_batch: Rows of an optimizer step over all processes. It stays the same for any number of processes; the
            number of accumulated micro-batches follows from it, so leave ``accumulate_grad_batches`` out.
        num_workers: Loader processes; 0 loads in the training process. The batches are the same for any number.
        val_share: Share of each source used for validation.
        test_share: Share of each source used for testing.
        split_by: ``documents`` assigns whole documents to splits by a hash of their text; ``position`` cuts each
            document, first training, then validation, then test; ``auto`` cuts the documents of a source that has too
            few of them to give each split one, and says so.
        shuffle_window: Rows that are shuffled together; a resumed run reads at most this many again.
        packing: How documents become rows: ``concatenate`` cuts one stream of tokens; ``best_fit`` packs whole
            documents and pads the rows; ``lanes`` lets row r of a step continue the document that row r of the
            previous step read, for a model with memory.
        separate_documents: Whether tokens attend only within their document and positions restart at each document.
        eval_tokens: Maximum number of tokens used of the validation split, and of the test split.
        seed: Seed of the order of the rows; the seed of ``seed_everything`` when omitted.
    """

    def __init__(
        self,
        sources: list[Source] | None = None,
        prepared: str | None = None,
        tokenizer: TrainedVocabSize | str = "gpt2",
        block_size: Length = 256,
        batch_size: Rows = 8,
        global_batch: Rows | None = None,
        num_workers: Annotated[int, Range(0, 1024)] = 0,
        val_share: ShareBelowOne = 0.05,
        test_share: ShareBelowOne = 0.05,
        split_by: SplitBy = "auto",
        shuffle_window: Annotated[int, Range(1, 2**24)] = 16384,
        packing: PackingName = "concatenate",
        separate_documents: bool = False,
        eval_tokens: Annotated[int, Range(2, 10**15)] = 1_000_000,
        seed: Seed | None = None,
    ) -> None:
        super().__init__()
        check_options(TextData.__init__, locals())
        if packing == "lanes" and separate_documents:
            raise CallError(
                "separate_documents and packing lanes cannot be combined: a row of a lane holds one document already"
            )
        self.configured: list[Source] = [WikipediaSlice(), PythonReference()] if sources is None else sources
        self.sources: Sequence[SourceBase] = self.configured
        weighted = [source.weight is not None for source in self.sources]
        if not self.sources:
            raise CallError("sources is empty; give at least one, or leave it out for the embedded corpus")
        if any(weighted) and not all(weighted):
            without = self.sources[weighted.index(False)].name
            raise CallError(f"source {without!r} has no weight but others have one; give all sources a weight, or none")
        self.block_size = block_size
        self.batch_size = batch_size
        self.global_batch = global_batch
        self.num_workers = num_workers
        Split(val_share, test_share)  # raises a CallError for shares that cannot be
        self.val_share, self.test_share, self.split_by = val_share, test_share, split_by
        self.shuffle_window = shuffle_window
        self.packing: PackingName = packing
        self.separate_documents = separate_documents
        self.eval_tokens = eval_tokens
        self.seed = seed
        self.vocab_size_to_train = tokenizer if isinstance(tokenizer, int) else None
        self._tokenizer = None if isinstance(tokenizer, int) else Tokenizer.named(tokenizer)
        if prepared is None:
            for source in self.configured:
                source.check()
        else:
            self._use_prepared(open_prepared(prepared))
        self._counts: tuple[str, list[Count]] | None = None
        self._eval: dict[tuple[object, ...], EvalRows] = {}
        self._train: TrainBatches | None = None
        self.mark: Mark | None = None

    def _use_prepared(self, corpus: PreparedCorpus) -> None:
        """Replace the sources and the tokenizer by those of a prepared folder.

        Raises:
            CallError: The folder was made from other sources or with other settings.
        """
        corpus.require_sources(self.configured)
        corpus.require_vocabulary(self.vocab_size_to_train)
        corpus.require(
            tokenizer_fingerprint=None if self._tokenizer is None else self._tokenizer.fingerprint,
            val_share=self.val_share,
            test_share=self.test_share,
            split_by=self.split_by,
        )
        for ours, source in zip(self.sources, corpus.sources, strict=True):
            source.require(max_tokens=ours.max_tokens, eval_tokens=self.eval_tokens)
            source.weight, source.max_tokens, source.max_passes = ours.weight, ours.max_tokens, ours.max_passes
        self.sources, self._tokenizer = corpus.sources, corpus.tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of token ids (the requested number until a vocabulary is trained). The model's is linked to it."""
        return self.vocab_size_to_train or self.tokenizer.vocab_size

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. One that has to be trained exists only after :meth:`setup`."""
        if self._tokenizer is None:
            raise RuntimeError("there is no tokenizer yet: setup() trains the vocabulary")
        return self._tokenizer

    def readers(self, part: SplitName) -> tuple[Reader, ...]:
        """One reader per source for the documents of a split."""
        pairs = zip(self.sources, self.splits, strict=True)
        return tuple(Reader(source, split, part, self.tokenizer) for source, split in pairs)

    def texts(self, part: SplitName) -> Iterator[str]:
        """The texts of a split, over all sources."""
        for source, split in zip(self.sources, self.splits, strict=True):
            yield from (text for _, text in texts_of(source, split, part))

    @property
    def splits(self) -> tuple[Split, ...]:
        """How each source is split."""
        return tuple(division.split for division in self._divisions)

    @cached_property
    def _divisions(self) -> list[Division]:
        """How each source is split, found out by reading as many documents as that takes."""
        divisions = [divide(source, self.val_share, self.test_share, self.split_by) for source in self.sources]
        for source, division in zip(self.sources, divisions, strict=True):
            if division.chosen:
                say(describe(source, division))
        return divisions

    def setup(self, stage: str) -> None:
        """Train the vocabulary if one was asked for (on the first process, for all) and check the data.

        Raises:
            CallError: ``global_batch`` does not divide, a split that the stage needs is empty (both known before
                anything is tokenised), or the sources have too little text.
        """
        if stage == "fit" and self.trainer is not None and self.global_batch is not None:
            hold_global_batch(self.trainer, self.batch_size, self.global_batch)
        validates = stage == "validate" or (
            stage == "fit" and self.trainer is not None and self.trainer.limit_val_batches != 0
        )
        if validates:
            require("val", self.val_share, self._divisions)
        elif stage in ("test", "predict"):
            require("test", self.test_share, self._divisions)
        if self._tokenizer is None and self.vocab_size_to_train is not None:
            trained = train_vocabulary(self.texts("train"), self.vocab_size_to_train) if self._is_first else None
            state = None if trained is None else trained.state_dict()
            if self.trainer is not None:
                state = self.trainer.strategy.broadcast(state)
            assert state is not None
            self._tokenizer = Tokenizer.from_state_dict(state)
        if stage == "fit":
            if self.trainer is None or self.trainer.global_step == 0:
                self.mark = self._train = None  # of an earlier training; a checkpoint is loaded after this
            self.stream()
            self._repeated_rows()

    def teardown(self, stage: str) -> None:
        """Give the trainer back as it was."""
        if stage == "fit" and self.trainer is not None and self.global_batch is not None:
            self.trainer.accumulate_grad_batches = 1

    @property
    def _is_first(self) -> bool:
        return self.trainer is None or self.trainer.is_global_zero

    @property
    def share(self) -> Share:
        """The rows of each step that this process reads."""
        return share_of(self.trainer, self.batch_size, self.global_batch)

    @property
    def micro_batch_rows(self) -> int:
        """Rows of a micro-batch over all processes."""
        return self.share.micro_batch_rows

    @property
    def step_rows(self) -> int:
        """Rows of an optimizer step over all processes."""
        return self.share.step_rows

    def counts(self) -> list[Count] | None:
        """The counts of one pass over each source; None if a source is not countable. The first call reads them all."""
        if not all(source.countable for source in self.sources):
            return None
        if self._counts is None or self._counts[0] != self.tokenizer.fingerprint:
            counts = []
            for reader in self.readers("train"):
                with console.status(f"counting {reader.source.name}"):
                    counts.append(count(reader, self.block_size, PACKINGS[self.packing], self.shuffle_window))
                say(f"{reader.source.name}: {counts[-1].described(self.block_size + 1)}")
            self._check(counts)
            self._counts = (self.tokenizer.fingerprint, counts)
        return self._counts[1]

    def rows_of_a_pass(self) -> list[int] | None:
        """Training rows per pass of each source, counted or from ``max_tokens``; None if one has neither."""
        counts = self.counts()
        if counts is not None:
            return [c.rows for c in counts]
        limits = [rows_at_most(source, self.block_size) for source in self.sources]
        return None if None in limits else [limit for limit in limits if limit is not None]

    def _check(self, counts: list[Count]) -> None:
        """Raise a CallError if a source has less than one row of training text."""
        row, rows = self.block_size + 1, self.step_rows
        for source, counted in zip(self.sources, counts, strict=True):
            if counted.rows == 0:
                raise CallError(
                    f"source {source.name!r} has {counted.tokens} training tokens, less than one block: block_size "
                    f"{self.block_size} needs {row:,}, and an optimizer step of {rows} rows {rows * row:,}; add text, "
                    f"or lower block_size and batch_size"
                )

    def stream(self) -> Stream:
        """Everything that determines the training rows.

        Raises:
            CallError: The sources have too little text, or need weights because they cannot be counted.
        """
        rows = self.rows_of_a_pass()
        if rows is not None and all(source.weight is None for source in self.sources):
            weights = [float(count) for count in rows]
        else:
            unweighted = [source.name for source in self.sources if source.weight is None]
            if unweighted and len(self.sources) > 1:
                raise CallError(
                    f"the sources cannot be counted before training, so their shares are unknown: give every source a "
                    f"weight or max_tokens (source {unweighted[0]!r} has neither)"
                )
            weights = [source.weight or 1.0 for source in self.sources]
        settings = (tuple(weights), self.block_size, self.shuffle_window, self._seed(), self.packing)
        if self.packing == "lanes":
            return LaneStream(self.readers("train"), *settings, self.step_rows)
        return Stream(self.readers("train"), *settings)

    def _repeated_rows(self) -> int | None:
        asked = 0 if self.trainer is None else self.trainer.overfit_batches  # type: ignore[attr-defined]
        steps = self._steps_of_a_pass()
        share = self.share
        epoch = None if steps is None else steps * share.accumulated
        return repeated_rows(asked, share.micro_batch_rows, share.accumulated, epoch)

    def _identity(self, stream: Stream) -> dict[str, Any]:
        return {**stream.identity(), "overfit_batches (in rows)": self._repeated_rows()}

    def _seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def _steps_of_a_pass(self) -> int | None:
        """Optimizer steps per pass over all sources; None if their rows are not known.

        Raises:
            CallError: There is less than one.
        """
        rows = self.rows_of_a_pass()
        if rows is None:
            return None
        if sum(rows) < self.step_rows:
            raise CallError(
                f"the corpus has {sum(rows)} training rows, but one optimizer step takes {self.step_rows} "
                f"({self.share.described()}): lower batch_size, accumulate_grad_batches or global_batch, or add text"
            )
        return sum(rows) // self.step_rows

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training batches from the cursor to the end of the epoch."""
        stream, steps = self.stream(), self._steps_of_a_pass()
        repeated = self._repeated_rows()
        if repeated is not None and self._train is None:
            say(f"overfitting: every epoch trains on the same {repeated:,} rows")
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        whole_epochs = isinstance(limit, float) and limit == 1.0 and repeated is None  # 1 is one batch
        batches, share = (TrainBatches if steps is None else SizedTrainBatches), self.share
        sizes = (self.batch_size, share.rank, share.size, steps, share.accumulated)
        self._train = batches(stream, *sizes, whole_epochs, repeated, self.separate_documents, self.cursor)
        return self._loader(self._train)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split."""
        return self._loader(self.evaluation("val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test split."""
        return self._loader(self.evaluation("test"))

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test split again."""
        return self.test_dataloader()

    def evaluation(self, part: SplitName) -> EvalRows:
        """This process's share of a validation or test split.

        Raises:
            CallError: The split has no text.
        """
        sizes = (self.block_size, self.batch_size, self.share.rank, self.share.size)
        if (key := (part, self.tokenizer.fingerprint, *sizes)) not in self._eval:
            texts = evaluation_documents(self.readers(part), self.eval_tokens)
            if sum(map(len, texts)) < 2:
                raise CallError(f"the {part} split is empty: no text was found for it; raise {part}_share")
            end_of_text = self.tokenizer.end_of_text
            if self.packing == "lanes":
                self._eval[key] = EvalLanes(texts, *sizes, end_of_text)
            else:
                closes = end_of_text if self.separate_documents else None
                self._eval[key] = EvalBatches(np.concatenate(texts).astype(np.int64), *sizes, closes)
        return self._eval[key]

    def _loader(self, batches: TrainBatches | EvalRows) -> DataLoader[Batch]:
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return load(batches, self.num_workers, self.batch_size * self.block_size, pin)

    @property
    def cursor(self) -> Cursor | None:
        """Where a resumed run continues; None before the first step."""
        return None if self.mark is None else self.mark.cursor()

    def trained_on(self, mark: Mark) -> None:
        """Move the mark past a completed optimizer step; a resumed run and the next epoch continue from there."""
        self.mark = mark
        if self._train is not None:
            self._train.mark = mark

    def state_dict(self) -> dict[str, Any]:
        """The tokenizer, the cursor, and the identity of the stream that it belongs to."""
        state: dict[str, Any] = {"tokenizer": self.tokenizer.state_dict()}
        if self._train is not None:
            state |= {
                "cursor": self.cursor,
                "stream": self._identity(self._train.stream),
                "micro_batch_rows": self.micro_batch_rows,
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where a checkpoint stopped; a CallError if rows have another order, or ids of another tokenizer."""
        tokenizer = Tokenizer.from_state_dict(state_dict["tokenizer"])
        for source in (each for each in self.sources if isinstance(each, PreparedSource)):
            source.require_tokenizer(tokenizer)
        named, self._tokenizer = None if self.vocab_size_to_train else self._tokenizer, tokenizer
        cursor = state_dict.get("cursor")
        self.mark = Mark(cursor) if cursor else None
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if fitting and "stream" in state_dict:
            was, now = state_dict["stream"], self._identity(self.stream())
            now["tokenizer"] = (named or tokenizer).fingerprint
            keys = dict.fromkeys([*was, *now])
            changed = [
                f"{key} changed from {was.get(key)} to {now.get(key)}" for key in keys if was.get(key) != now.get(key)
            ]
            if changed:
                raise CallError(f"cannot resume: {'; '.join(changed)}, which changes the order of the data")
