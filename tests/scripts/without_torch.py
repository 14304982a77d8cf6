"""A training loop without torch, as of JAX: hooks see nothing of it, so it reports its steps or prints them."""

import numpy as np
import truth

BATCH, STEPS = 256, 80


def main():
    rng = np.random.default_rng(0)
    weights, target = np.zeros((512, 64)), rng.normal(size=(512, 64))
    for step in range(1, STEPS + 1):
        x = rng.normal(size=(BATCH, 512))
        error = x @ weights - x @ target
        weights -= 0.2 * x.T @ error / BATCH
        truth.step(BATCH)
        print(f"step: {step}, loss: {np.square(error).mean():.4f}, steps_per_sec: 80.0", flush=True)


if __name__ == "__main__":
    main()
