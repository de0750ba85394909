"""Scorers with a small network that is trained here: on one process, apart from the user's run, for all processes."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_count, check_share, warn
from qa_hooks._base.processes import broadcast_tensors, rank, together
from qa_hooks._base.progress import Progress
from qa_hooks.images import Range
from qa_hooks.scorers.calibration import Calibration, check_method
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.batches import Source, is_shared

Own = TypeVar("Own", bound="TrainedScorer")
Read = TypeVar("Read")

LOOK = 50  # steps between two looks at the loss, each of which synchronises a GPU
HEADER, POINTS = "qa_hooks.header", "qa_hooks.points"  # beside the network's tensors, on the way between processes


class Fitted(NamedTuple):
    """What a training gives: the network's tensors, facts that JSON can hold, and a calibration where there is one."""

    weights: dict[str, Tensor]
    facts: dict[str, Any]
    calibration: Calibration | None = None


class TrainedScorer(Scorer):
    """Base of scorers that train a network of their own. They score when they are fitted or loaded.

    A subclass makes the network in `network_for`, keeps the facts in `take_facts`, divides a file into the
    constructor's options and the rest in `divide`, and calls `fit_on_one` in its own `fit`.

    Args:
        seed: of the initial weights, the batches and the choice of held-out images.
        value_range: what the numbers of the images mean.
    """

    fit_call = "fit(images)"  # for messages
    _here: Tensor

    def __init__(self, *, seed: int = 0, value_range: Range = (0.0, 1.0)) -> None:
        super().__init__(value_range=value_range)
        self.seed = int(seed)
        self._network: nn.Module | None = None
        nothing = torch.empty(0, device="cpu", dtype=torch.float32)
        self.register_buffer("_here", nothing, persistent=False)  # where training is to happen

    def network_for(self, facts: dict[str, Any]) -> nn.Module:
        """What a subclass writes: the network, untrained, for which `facts` were found."""
        raise NotImplementedError(f"{type(self).__name__} must define network_for(facts)")

    def take_facts(self, facts: dict[str, Any]) -> None:
        """What a subclass writes: keep what was measured beside the network."""
        raise NotImplementedError(f"{type(self).__name__} must define take_facts(facts)")

    @classmethod
    def divide(cls, options: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], Fitted]:
        """What a subclass writes: a file's options and tensors -> the constructor's options, and what was fitted."""
        raise NotImplementedError(f"{cls.__name__} must define divide(options, tensors)")

    @property
    def network(self) -> nn.Module:
        """The trained network; `ValueError` when there is none yet."""
        if self._network is None:
            raise ValueError(f"{self.name} is not fitted; call {self.fit_call}, or load a saved one")
        return self._network

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, seed={self.seed}{', not fitted' if self._network is None else ''}"

    def tensors(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}

    @classmethod
    def from_saved(cls: type[Own], options: dict[str, Any], tensors: dict[str, Tensor], value_range: Range) -> Own:
        own, fitted = cls.divide(dict(options), dict(tensors))
        scorer = cls(**own, value_range=value_range)
        with torch.device("meta"):  # what the file asks for takes no memory before it is held against the tensors in it
            blank = scorer.network_for(fitted.facts).state_dict()
        odd = set(blank) ^ set(fitted.weights)
        odd |= {name for name in set(blank) - odd if blank[name].shape != fitted.weights[name].shape}
        odd |= {name for name in set(blank) - odd if not bool(fitted.weights[name].isfinite().all())}
        if odd:
            raise ValueError(f"{min(odd)} is missing, needless, not finite or not of the shape that the network has")
        with training_room(torch.device("cpu"), 0):
            scorer._take(fitted)
        return scorer

    def fit_on_one(self, train: Callable[[], Fitted]) -> None:
        """Take over what `train` returns on the first process; the other processes wait for its result.

        Raises:
            Exception: what `train` raised, on the first process.
            RuntimeError: the same message, on the others.
        """
        fitted = None
        with together():
            if rank() == 0:
                fitted = train()
        self._take(_broadcast(fitted))

    def calibration_on(self, goodness: Tensor, method: str | None, where: str) -> Calibration | None:
        """Fitted on held-out images; where that is impossible a warning says why, and there is none."""
        try:
            return None if method is None else Calibration.fit(goodness, method=method)
        except ValueError as error:
            warn(f"{self.name} has no calibration, because on held-out {where} its {error}")
            return None

    def _take(self, fitted: Fitted) -> None:
        network = self.network_for(fitted.facts).float()
        network.load_state_dict(fitted.weights)
        self._frozen.clear()
        self._network = self.keep(network.to(self._here.device))
        self.calibration = fitted.calibration
        self.take_facts(fitted.facts)


def check_fit(*, steps: int, batch_size: int, held_out: float, calibration: str | None) -> None:
    """The arguments that every training has; `ValueError` names the one that makes no sense."""
    check_count("steps", steps)
    check_count("batch_size", batch_size, least=2)
    check_method(calibration)
    check_share("held_out", held_out)


def read_for_one(source: Source, read: Callable[[], Read], nothing: Read, gather: Callable[[Read], Read]) -> Read:
    """Read what the first process needs: all of a source that every process sees, or each process's own part."""
    own = nothing
    with together():
        if rank() == 0 or not is_shared(source):
            own = read()
    return own if is_shared(source) else gather(own)


def _broadcast(fitted: Fitted | None) -> Fitted:
    """The first process's, on every one."""
    sent = None
    if fitted is not None:
        method = None if fitted.calibration is None else fitted.calibration.method
        header = json.dumps([fitted.facts, method]).encode()
        sent = {**fitted.weights, HEADER: torch.tensor(list(header), dtype=torch.uint8, device="cpu")}
        if fitted.calibration is not None:
            sent[POINTS] = fitted.calibration.points
    tensors = broadcast_tensors(sent)
    facts, method = json.loads(bytes(tensors.pop(HEADER).tolist()))
    points = tensors.pop(POINTS, None)
    return Fitted(tensors, facts, None if points is None else Calibration(method, points))


@contextlib.contextmanager
def training_room(device: torch.device, seed: int) -> Iterator[None]:
    """Gradients on, autocast off and random numbers of our own, whatever the caller's state; which is put back."""
    cuda, default = device.type == "cuda", torch.get_default_dtype()
    elsewhere = torch.get_default_device().type != "cpu"
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng([device] if cuda else []),
        torch.device("cpu") if elsewhere else contextlib.nullcontext(),
    ):
        torch.set_default_dtype(torch.float32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the devices that are not put back
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A network this small gains nothing from more threads, loses much where cores are busy, and has the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def minimise(
    batch_loss: Callable[[int], Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    *,
    steps: int,
    what: str,
    progress: bool,
) -> None:
    """Make so many optimizer steps on `batch_loss(step)`, with the network in train mode, and in eval mode afterwards.

    Raises:
        ValueError: the loss is not finite any more.
    """
    lr = optimizer.defaults["lr"]
    network.train()
    with Progress(what, steps, unit="step", shown=progress) as bar:
        for step in range(steps):
            loss = batch_loss(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % LOOK == LOOK - 1 or step == steps - 1:
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise ValueError(f"the loss is {value} after {step + 1} steps; a smaller lr than {lr:g}?")
                bar.update(0, note=f"loss {value:.3f}")
            bar.update()
    network.eval()
