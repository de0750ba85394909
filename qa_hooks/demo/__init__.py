"""The demo: WGAN-GP on handwritten digits, plain and with QAGAN's two quality penalties, at equal steps and seeds.

    python -m qa_hooks demo                      # about a minute and a half on two cores; nothing is downloaded
    python -m qa_hooks demo --data FOLDER        # the same on a folder of images
    python -m qa_hooks demo sr                   # a super-resolution network, with and without an SSIM loss
    python -m qa_hooks demo diffusion            # a diffusion model, tuned on a score with and without a KL term

Data, networks and evaluation are public, so that examples can use them; `examples/qagan_digits.py` writes the loop out.
"""

from qa_hooks.demo.comparison import run_demo
from qa_hooks.demo.data import Images, load_digits_images, load_folder_images
from qa_hooks.demo.evaluation import Evaluator
from qa_hooks.demo.networks import LATENT, make_critic, make_generator, update_ema
from qa_hooks.demo.side_by_side import side_by_side
from qa_hooks.demo.worlds import run_diffusion_demo, run_sr_demo

__all__ = [
    "LATENT",
    "Evaluator",
    "Images",
    "load_digits_images",
    "load_folder_images",
    "make_critic",
    "make_generator",
    "run_demo",
    "run_diffusion_demo",
    "run_sr_demo",
    "side_by_side",
    "update_ema",
]
