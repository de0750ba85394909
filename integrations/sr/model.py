"""The models of an SR framework with the `qa` block of the config; without the block they work bit for bit as before.

    qa:
      strategy: amo                     the best candidate of each crop becomes its ground truth, in feed_data
      scorer: pyiqa:musiq               of strategy amo; the data set has strategy: amo, or candidates: true
      reward: {scorer: pyiqa:topiq_nr, loss_weight: 1, ceiling: real, balance: 0.3, views: 2}     `ScoreLoss`
      negative: {loss_weight: 300}      `HGGTNegativeLoss`; the data set has negatives: true
      lora: {rank: 16, alpha: 16}       `inject_lora`: only the adapter is trained
      penalty: {quality: ssim, gp_weight: 0, quality_weight: 0.1}      `QAGANPenalty` of the discriminator

Reward and negative are added to the pixel loss (or are an entry of their own where losses are a list) and logged apart,
as l_qa_reward and l_qa_negative, with the reward's terms as qa_score, qa_weight, qa_at_ceiling, qa_ceiling.

Checkpoints stay the framework's: with LoRA, net_g_N is the network with the adapter merged in, which any program loads.
Beside them, in models/qa, is what a resumed run needs: base.safetensors, the network without the adapter, once; and N/
with the adapter alone and the state of reward and penalty. Resuming takes up that base and that adapter, exactly.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from qa_hooks._base.files import check_writable, read_safetensors, write_safetensors
from qa_hooks._base.processes import rank
from qa_hooks.data import select_ground_truth
from qa_hooks.integrations.hook_state import load_state, save_state
from qa_hooks.integrations.peft import inject_lora, load_lora, merge_lora, save_lora
from qa_hooks.integrations.sr.conventions import Framework, check_options, default_device_cpu, keywords, option
from qa_hooks.integrations.sr.losses import LOSSES, AddedTerms, FrameworkLoss, framework_loss
from qa_hooks.losses import QALoss
from qa_hooks.losses.hggt import HGGTNegativeLoss
from qa_hooks.penalties import QAGANPenalty, attach_penalty
from qa_hooks.scorers import create_scorer

BLOCKS = ("strategy", "scorer", "reward", "negative", "lora", "penalty")
BASE = "qa_hooks.sr_base"
NO_BASE = "is not the network that the adapter of this run belongs to"
VOTED = ("original", "negative", "negative_votes", "positive_votes")
ADDED = "l_g_qa"

if TYPE_CHECKING:
    Base = Any  # a class of the framework, which comes next in the order of the bases
else:
    Base = object


class QualityModel(Base):  # type: ignore[misc]
    """What the `qa` block adds to a model of a framework.

    Attributes:
        framework: its conventions.
        degrades: it makes the low-resolution images itself, after the batch is fed: there is no amo and no negative.
    """

    framework: Framework
    degrades: bool
    net_g: Any  # theirs, as is the pixel loss
    cri_pix: Any
    qa_selector: Any = None
    qa_reward: FrameworkLoss | None = None
    qa_negative: FrameworkLoss | None = None
    qa_penalty: QAGANPenalty | None = None
    qa_added: AddedTerms | None = None
    qa_lora = False
    _qa_votes: Mapping[str, Tensor] = {}

    def init_training_settings(self) -> None:
        blocks = check_options("qa", option(self.opt, "qa", {}), BLOCKS)
        if "lora" in blocks:
            self._qa_inject(blocks["lora"])
        super().init_training_settings()
        self._qa_selection(blocks)
        for block, kind in (("reward", LOSSES["QA Score Loss"]), ("negative", HGGTNegativeLoss)):
            if block in blocks:
                setattr(self, f"qa_{block}", self._qa_loss(block, kind, blocks[block]))
        if self.qa_reward is not None or self.qa_negative is not None:
            self._qa_add()
        if "penalty" in blocks:
            self._qa_attach(blocks["penalty"])
        self._qa_resume()

    def _qa_selection(self, blocks: Mapping[str, Any]) -> None:
        strategy = blocks.get("strategy")
        if self.degrades and (strategy is not None or "negative" in blocks):
            raise ValueError(
                f"{type(self).__name__} makes its own low-resolution images from the batch: qa.strategy and "
                "qa.negative want a model that takes pairs"
            )
        if strategy not in (None, "amo"):
            raise ValueError(f"qa.strategy must be amo, got {strategy!r}; the others are datasets.train.qa.strategy")
        if (strategy is None) != ("scorer" not in blocks):
            raise ValueError("qa.strategy: amo and qa.scorer belong together")
        if strategy is not None:
            with default_device_cpu():
                self.qa_selector = create_scorer(blocks["scorer"]).to(self.device)

    def feed_data(self, data: Mapping[str, Any]) -> None:
        batch = dict(data)
        if self.is_train and "candidates" in batch and self.qa_selector is not None:
            candidates = batch.pop("candidates").to(self.device, non_blocking=True)
            with default_device_cpu():
                chosen = select_ground_truth(candidates, strategy="amo", scorer=self.qa_selector)
            batch["gt"] = candidates[torch.arange(len(chosen), device=chosen.device), chosen]
        elif "candidates" in batch and "gt" not in batch:
            raise ValueError("datasets.train.qa.strategy: amo wants qa: {strategy: amo, scorer: ...} of the model")
        if self.is_train and self.qa_negative is not None and "lq" in batch:
            self._qa_votes = {key: batch[key].to(self.device) for key in VOTED if key in batch}
        super().feed_data(batch)

    def _qa_loss(self, block: str, kind: type[QALoss], given: Any) -> FrameworkLoss:
        # Weighed here whatever the framework does: it is a part of one added term.
        own = dataclasses.replace(self.framework, weighs=False, snake_names=False)
        known = ["loss_weight", *keywords(kind, "weight", "reduction", "value_range")]
        options = check_options(f"qa.{block}", given, [*known, *(["scorer"] if block == "reward" else [])])
        options.setdefault("loss_weight", 1.0 if block == "reward" else 300.0)
        return framework_loss(own, f"qa.{block}", kind)(**options).to(self.device)

    def _qa_add(self) -> None:
        if self.framework.loss_list:
            self.qa_added = AddedTerms(self._qa_terms)
            self.losses[ADDED] = self.qa_added
            return
        if getattr(self, "cri_pix", None) is None:
            raise ValueError("qa.reward and qa.negative stand beside train.pixel_opt, which is missing")
        self.cri_pix = self.qa_added = AddedTerms(self._qa_terms, self.cri_pix)

    def _qa_terms(self, output: Tensor, gt: Tensor) -> dict[str, Tensor]:
        found = {}
        if self.qa_reward is not None:
            found["l_qa_reward"] = self.qa_reward(output, gt)
        if self.qa_negative is not None:
            found["l_qa_negative"] = self.qa_negative(output, gt, **self._qa_votes)
        return found

    def _qa_attach(self, given: Any) -> None:
        critic = getattr(self, "net_d", None)
        if critic is None:
            raise ValueError("qa.penalty is for a discriminator: network_d and a GAN loss are missing")
        options = check_options("qa.penalty", given, ["quality", *keywords(QAGANPenalty, "value_range", "output_fn")])
        quality = options.pop("quality", "ssim")
        self.qa_penalty = QAGANPenalty(quality, value_range=(0.0, 1.0), **options).to(self.device)
        attach_penalty(
            self.optimizer_d,
            self.get_bare_model(critic),
            self.qa_penalty,
            batch=lambda: (self.gt, self.output.detach()),
        )

    def reduce_loss_dict(self, loss_dict: dict[str, Any]) -> Any:
        added, shown = self.qa_added, dict(loss_dict)
        if added is not None and added.last:
            found = dict(added.last)
            if self.qa_reward is not None:
                names = ("score", "weight", "at_ceiling", "ceiling")
                terms = self.qa_reward.loss.terms
                found |= {f"qa_{term}": terms[term].detach().to(self.device) for term in names if term in terms}
            total = sum(added.last.values())
            for pixel in ("l_pix", "l_g_pix"):
                if added.pixel is not None and pixel in shown:
                    shown[pixel] = shown[pixel] - total
            if self.framework.loss_list:  # summed over the images since the last message
                found = {key: shown.get(key, 0) + value * len(self.gt) for key, value in found.items()}
            shown |= found
            added.last = {}
        return super().reduce_loss_dict(shown)

    def _qa_inject(self, given: Any) -> None:
        if option(option(self.opt, "train"), self.framework.ema, 0) > 0:
            raise ValueError(f"qa.lora trains an adapter alone: remove train.{self.framework.ema}")
        options = check_options("qa.lora", given, keywords(inject_lora, "adapter", "example"))
        network = self.get_bare_model(self.net_g)
        with default_device_cpu():
            if self._qa_iteration is not None:  # net_g_N, which was loaded, has the adapter in it
                weights, _ = read_safetensors(self._qa_folder / "base.safetensors", NO_BASE, format=BASE)
                network.load_state_dict(weights)
            elif rank() == 0:
                weights = {name: weight.clone() for name, weight in network.state_dict().items()}
                check_writable(self._qa_folder, name="models")
                write_safetensors(self._qa_folder / "base.safetensors", weights, {"format": BASE})
            inject_lora(network, **options)
            if self._qa_iteration is not None:
                load_lora(network, self._qa_folder / self._qa_iteration)
        self.qa_lora = True
        if network is not self.net_g:  # DDP and compilers look at the network when they wrap it
            compiled = {"compile": True} if option(self.opt, "use_compile", False) else {}
            self.net_g = self.model_to_device(network, **compiled)

    @property
    def _qa_folder(self) -> Path:
        return Path(option(option(self.opt, "path"), "models")) / "qa"

    @property
    def _qa_iteration(self) -> str | None:
        state = option(option(self.opt, "path"), "resume_state")
        return None if state is None else Path(state).stem

    def _qa_state(self) -> dict[str, Any]:
        parts = {"reward": None if self.qa_reward is None else self.qa_reward.loss, "penalty": self.qa_penalty}
        return {key: cast(Any, part) for key, part in parts.items() if part is not None}

    def _qa_resume(self) -> None:
        parts = self._qa_state()
        if self._qa_iteration is None or not parts:
            return
        state = load_state(self._qa_folder / self._qa_iteration / "state.safetensors")
        for key, part in parts.items():
            if key in state:
                part.load_run_state(state[key])

    def save(self, epoch: int, current_iter: int) -> None:
        trained = self.net_g
        if self.qa_lora:
            for optimizer in self.optimizers:
                if hasattr(optimizer, "eval"):  # schedule-free ones hold other weights while they train
                    optimizer.eval()
            self.net_g = copy.deepcopy(self.get_bare_model(trained))
            merge_lora(self.net_g)
        try:
            super().save(epoch, current_iter)
        finally:
            self.net_g = trained
        parts, folder = self._qa_state(), self._qa_folder / ("latest" if current_iter == -1 else str(current_iter))
        if rank() != 0:
            return
        if self.qa_lora:
            save_lora(self.get_bare_model(self.net_g), folder)
        if parts:
            check_writable(folder, name="models")
            save_state({key: part.run_state() for key, part in parts.items()}, folder / "state.safetensors")


def framework_model(framework: Framework, base: type[Any], name: str, *, degrades: bool) -> type[Any]:
    """The class to register: the framework's `base` with the `qa` block."""
    facts = {"framework": framework, "degrades": degrades, "__module__": __name__}
    return type(name, (QualityModel, base), facts)
