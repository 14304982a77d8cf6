"""Keras with accumulation, validation and checkpoints, fitted twice: 22 samples, 2 epochs each time.

`train_keras.py FIRST` begins with another epoch, counted from 0.
"""

import sys

import keras
import numpy as np

import wattbench

keras.utils.set_random_seed(0)
x, y = np.random.randn(22, 8).astype("float32"), np.random.randn(22, 1).astype("float32")
model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(1)])
model.compile(optimizer=keras.optimizers.SGD(gradient_accumulation_steps=2), loss="mse")
callbacks = [wattbench.KerasCallback(), keras.callbacks.ModelCheckpoint("model.keras")]
first = int(sys.argv[1]) if len(sys.argv) > 1 else 0
for _ in range(2):
    model.fit(x, y, batch_size=4, epochs=2, initial_epoch=first, validation_data=(x, y), callbacks=callbacks, verbose=0)
