"""dpexplore: see, touch and measure what a language model can and cannot say as a probability distribution.

An implementation of *Distribution Prompting* (arXiv 2505.12244):

    import dpexplore as dp

    lm = dp.load_model("smollm2-135m-instruct")
    target = dp.entropy(bits=7, seed=0).build(lm)
    run = dp.tune(lm, target, dp.TuneConfig(method="soft", restarts=5, steps=500, seed=0))
    for step in run:
        print(step.step, step.best_kl_nats)
    print(run.result.kl_nats)

Everything is computed in nats.
"""

import lazy_loader

__version__ = "0.1.0"

# The public names stand in `__init__.pyi` and are imported when first used: `dpexplore --help` needs no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
