"""Trainings in the style of public scripts, each with a hand count in test_hooks: `python -m tests.hooked NAME ...`.

Each runs in a forked process, so that torch is imported once. A line says its name, process, last loss and compiled graphs.
"""

import gc
import io
import os
import pickle
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

STEPS = 8


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def train(optimizers, loss, steps=STEPS):
    for number in range(steps):
        value = loss(number)
        if value.requires_grad:
            value.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return value


class CausalSelfAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (part.unsqueeze(1) for part in self.qkv(x).chunk(3, -1))
        return self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))


class GPT(nn.Module):
    """Returns the logits and the loss, as nanoGPT and minGPT do."""

    def __init__(self):
        super().__init__()
        self.table, self.attention, self.head = nn.Embedding(64, 32), CausalSelfAttention(32), nn.Linear(32, 64)

    def forward(self, idx, targets):
        x = self.table(idx)
        logits = self.head(x + self.attention(x))
        return logits, functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gpt(model=None):
    """Two micro-batches a step, and an evaluation after the sixth step."""
    model = GPT() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters())

    def loss(number):
        if number == 6:
            model.eval()
            with torch.no_grad():
                for _ in range(3):
                    model(torch.zeros(2, 16, dtype=torch.long), torch.zeros(2, 16, dtype=torch.long))
            model.train()
        for micro in range(2):
            x = torch.randint(64, (4, 16))
            value = model(x, x)[1] / 2
            if micro == 0:
                value.backward()
        return value

    return train([optimizer], loss)


def compiled_gpt():
    return gpt(torch.compile(GPT(), backend="aot_eager"))


def compiled_in_place():
    model = GPT()
    model.compile(backend="aot_eager")
    return gpt(model)


def compiled_with_hooks():
    model = mlp()
    model[0].register_forward_hook(lambda module, args, out: out * 2)
    compiled = torch.compile(model, backend="aot_eager")
    return train([torch.optim.SGD(model.parameters())], lambda _: compiled(torch.randn(16, 8)).square().mean())


def compiled_function():
    model = mlp()
    function = torch.compile(lambda x: model(x).square().mean(), backend="aot_eager")
    return train([torch.optim.SGD(model.parameters())], lambda _: function(torch.randn(16, 8)))


def mnist():
    model, criterion = (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)),
        nn.CrossEntropyLoss(),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return train([optimizer], lambda _: criterion(model(torch.randn(32, 1, 8, 8)), torch.randint(10, (32,))))


def word_language_model():
    """Inputs begin with time."""

    class RNNModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.rnn, self.head = nn.Embedding(50, 16), nn.LSTM(16, 16), nn.Linear(16, 50)

        def forward(self, x, hidden):
            return self.head(self.rnn(self.table(x), hidden)[0])

    model, hidden = RNNModel(), (torch.zeros(1, 20, 16), torch.zeros(1, 20, 16))
    return train([torch.optim.SGD(model.parameters())], lambda _: model(torch.randint(50, (35, 20)), hidden).mean())


def lightning():
    class Lit(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def training_step(self, batch):
            return functional.cross_entropy(self.net(batch[0]), batch[1])

        forward = training_step

    model = Lit()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(STEPS):

        def closure():
            optimizer.zero_grad()
            loss = model([torch.randn(16, 8), torch.randint(4, (16,))])
            loss.backward()
            return loss

        value = optimizer.step(closure)
    return value


def gan():
    generator, critic = nn.Linear(4, 8), nn.Linear(8, 1)
    first, second = torch.optim.Adam(critic.parameters()), torch.optim.Adam(generator.parameters())
    for _ in range(STEPS):
        fake = generator(torch.randn(16, 4))
        critic(torch.randn(16, 8)).mean().backward()
        critic(fake.detach()).mean().neg().backward()
        first.step()
        value = critic(fake).mean()
        value.backward()
        second.step()
    return value


def critic_first():
    """A step of the critic alone, then one of the generator through it."""
    generator, critic = nn.Linear(4, 8), nn.Linear(8, 1)
    first, second = torch.optim.Adam(critic.parameters()), torch.optim.Adam(generator.parameters())
    for _ in range(STEPS):
        with torch.no_grad():
            fake = generator(torch.randn(16, 4))
        critic(torch.cat([fake, torch.randn(16, 8)])).mean().backward()
        first.step()
        value = critic(generator(torch.randn(16, 4))).mean()
        value.backward()
        second.step()
    return value


def frozen_in_training():
    """A loss by a frozen network that nobody put into evaluation."""
    model, judge = mlp(), nn.Linear(4, 32).requires_grad_(False)
    return train([torch.optim.Adam(model.parameters())], lambda _: judge(model(torch.randn(16, 8))).square().mean())


def head_only():
    model = mlp()
    return train([torch.optim.Adam(model[2].parameters())], lambda _: model(torch.randn(16, 8)).square().mean())


def two_groups():
    """As Muon for matrices and AdamW for the rest."""
    model = mlp()
    optimizers = [torch.optim.Adam([p for p in model.parameters() if p.dim() == d]) for d in (2, 1)]
    return train(optimizers, lambda _: model(torch.randn(16, 8)).square().mean())


class DualEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.attention = nn.Embedding(64, 32), CausalSelfAttention(32)

    def forward(self, query, text):
        query, text = (self.attention(self.table(ids)).mean(1) for ids in (query, text))
        return query @ text.T


def queries():
    model = DualEncoder()
    shapes = (8, 16), (8, 64)
    return train(
        [torch.optim.Adam(model.parameters())],
        lambda _: model(*(torch.randint(0, 64, shape) for shape in shapes)).square().mean(),
    )


def actor():
    """A thread plays with a copy of the policy while the learner trains."""
    model, policy = mlp(), mlp()

    def play():
        with torch.no_grad():
            policy(torch.randn(1, 8))

    def loss(_):
        thread = threading.Thread(target=play)
        thread.start()
        thread.join()
        return model(torch.randn(16, 8)).square().mean()

    return train([torch.optim.Adam(model.parameters())], loss)


def simclr():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    return train([optimizer], lambda _: (model(torch.randn(16, 8)) - model(torch.randn(16, 8))).square().mean())


def recurrent():
    cell = nn.RNNCell(8, 8)

    def loss(_):
        hidden = torch.zeros(16, 8)
        for _ in range(5):
            hidden = cell(torch.randn(16, 8), hidden)
        return hidden.square().mean()

    return train([torch.optim.Adam(cell.parameters())], loss)


def graphs():
    class GCN(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x, edge_index):
            return self.layer(x.index_add(0, edge_index[0], x[edge_index[1]]))

    model = GCN()
    optimizer = torch.optim.Adam(model.parameters())
    return train([optimizer], lambda _: model(torch.randn(30, 8), edge_index=torch.randint(30, (2, 90))).mean())


def recommender():
    class DLRM(nn.Module):
        def __init__(self):
            super().__init__()
            self.tables, self.top = nn.ModuleList(nn.Embedding(100, 4) for _ in range(3)), nn.Linear(12, 1)

        def forward(self, columns):
            return self.top(torch.cat([table(columns[:, i]) for i, table in enumerate(self.tables)], 1))

    model = DLRM()
    return train([torch.optim.Adagrad(model.parameters())], lambda _: model(torch.randint(100, (64, 3))).mean())


def distillation():
    """A teacher in each step, and one evaluation of the student."""
    teacher, student = mlp().eval(), mlp()

    def loss(number):
        x = torch.randn(16, 8)
        with torch.no_grad():
            target = teacher(x)
            if number == 6:
                student.eval()(x)
                student.train()
        return functional.mse_loss(student(x), target)

    return train([torch.optim.Adam(student.parameters())], loss)


def lbfgs():
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    for _ in range(STEPS):

        def closure():
            optimizer.zero_grad()
            loss = model(torch.ones(16, 8)).square().mean()
            loss.backward()
            return loss

        value = optimizer.step(closure)
    return value


def checkpointed():
    class Recomputed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = mlp(), nn.Linear(4, 4)

        def forward(self, x):
            middle = checkpoint(self.body, x, use_reentrant=False)
            return self.head(checkpoint(self.head, middle, use_reentrant=True))

    model = Recomputed()
    return train([torch.optim.Adam(model.parameters())], lambda _: model(torch.randn(16, 8)).square().mean())


def muon():
    model = mlp()
    matrices = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2])
    rest = torch.optim.AdamW([p for p in model.parameters() if p.dim() == 1])
    return train([matrices, rest], lambda _: model(torch.randn(16, 8)).square().mean())


def folds():
    for _ in range(3):
        model = mlp()
        value = train([torch.optim.Adam(model.parameters())], lambda _, model=model: model(torch.randn(16, 8)).mean())
    return value


def two_towers():
    images, texts = nn.Linear(8, 4), nn.Linear(6, 4)
    optimizer = torch.optim.Adam([*images.parameters(), *texts.parameters()])
    return train([optimizer], lambda _: (images(torch.randn(16, 8)) - texts(torch.randn(16, 6))).square().mean())


def sharpness():
    """Each batch is passed twice."""
    model = mlp()

    def loss(_):
        x = torch.randn(16, 8)
        model(x).mean().backward()
        return model(x).mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def scaled():
    model, scaler = nn.Linear(8, 4), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters())
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            value = model(torch.randn(16, 8)).float().square().mean()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return value


class Slow:
    def __reduce__(self):
        time.sleep(0.01)
        return dict, ()


class DeepSpeedEngine(nn.Module):
    """Wraps a model and its optimizer as DeepSpeed does: each second `step` is one of the optimizer."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls, self.dp_world_size = module, 0, 1
        self.optimizer = torch.optim.AdamW(module.parameters())

    def forward(self, *inputs):
        return self.module(*inputs)

    def backward(self, loss):
        (loss / 2).backward()

    def step(self):
        self.calls += 1
        if self.calls % 2 == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()


def engine():
    """Two micro-batches of 8 a step."""
    wrapped = DeepSpeedEngine(mlp())
    for _ in range(2 * STEPS):
        value = wrapped(torch.randn(8, 8)).square().mean()
        wrapped.backward(value)
        wrapped.step()
    return value


def saving():
    """A checkpoint after the fifth step; a file that takes long to write."""
    model = mlp()

    def loss(number):
        if number == 5:
            torch.save(Slow(), os.devnull)
        return model(torch.randn(16, 8)).mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def phases():
    """First the head alone, then all of it, by another optimizer."""
    model = mlp()
    for trained in (False, True):
        model[0].requires_grad_(trained)
        own = [each for each in model.parameters() if each.requires_grad]
        time.sleep(0.05 * trained)
        value = train([torch.optim.SGD(own)], lambda _: model(torch.randn(16, 8)).square().mean())
    return value


def thawed():
    """All of it from the tenth step on, by the same optimizer."""
    model = mlp()
    model[0].requires_grad_(False)

    def loss(number):
        model[0].requires_grad_(number >= 10)
        return model(torch.randn(16, 8)).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss, 70)


def left_in_evaluation():
    """An evaluation after which nobody calls `train`, and a teacher with gradients whose output is detached."""
    model, teacher = mlp(), mlp().eval().requires_grad_(False)

    def loss(number):
        x = torch.randn(16, 8)
        if number == 4:
            with torch.no_grad():
                model.eval()(x)
        return functional.mse_loss(model(x), teacher(x))

    return train([torch.optim.SGD(model.parameters())], loss)


def self_conditioned():
    """The model is sometimes called without gradients for what it gets as input next."""
    model = nn.Linear(8, 8)

    def loss(number):
        x = torch.randn(16, 8)
        if number % 3 == 2:
            with torch.no_grad():
                x = x + model(x)
        return model(x).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def validated_in_training_mode():
    """A validation of one batch leaves the model in training mode."""
    model = nn.Linear(8, 8)

    def loss(number):
        if number % 5 == 4:
            with torch.no_grad():
                model(torch.randn(24, 8))
        return model(torch.randn(16, 8)).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def evaluation_after_work():
    """Each step ends with other work, which is no part of an evaluation behind it, and begins with the loading of data."""
    model = mlp()

    def loss(number):
        time.sleep(0.1)
        if number in (4, 6):
            with torch.no_grad():
                model.eval()(torch.randn(16, 8))
            model.train()
        time.sleep(0.1)
        return model(torch.randn(16, 8)).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def slow_evaluation():
    """Data of an evaluation take time before its first pass, those of the training in each step."""
    model = mlp()

    def loss(number):
        if number in (4, 6):
            with torch.no_grad():
                time.sleep(0.25)
                model.eval()(torch.randn(16, 8))
            model.train()
        time.sleep(0.01)
        return model(torch.randn(16, 8)).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def evaluation_after_loading():
    """The data of a step are there before the evaluation begins."""
    model = mlp()

    def loss(number):
        time.sleep(0.1)
        if number in (4, 6):
            with torch.no_grad():
                model.eval()(torch.randn(16, 8))
            model.train()
        return model(torch.randn(16, 8)).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def stepped_in_backward():
    """Each parameter has an optimizer, which makes a step as soon as there is the gradient."""
    model = mlp()
    optimizers = {each: torch.optim.SGD([each]) for each in model.parameters()}

    def update(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for each in model.parameters():
        each.register_post_accumulate_grad_hook(update)
    return train([], lambda _: model(torch.randn(16, 8)).square().mean())


def contrastive():
    """The loss has a product outside of the model, which is small beside what a gradient of the input would take."""
    model = nn.Linear(64, 8)

    def loss(_):
        code = model(torch.randn(16, 64))
        return functional.cross_entropy(code @ code.T, torch.arange(16))

    return train([torch.optim.SGD(model.parameters())], loss)


def frozen_backbone():
    """A model in evaluation without gradients, whose output goes into the one that is trained."""
    backbone, head = nn.Linear(8, 8).eval().requires_grad_(False), nn.Linear(8, 4)
    return train([torch.optim.SGD(head.parameters())], lambda _: head(backbone(torch.randn(16, 8))).square().mean())


class Block(nn.Module):
    """Attention in a module without a name that says so."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(64, 32), nn.Linear(32, 64)

    def forward(self, idx, targets):
        x = self.table(idx).unsqueeze(1)
        x = self.head(functional.scaled_dot_product_attention(x, x, x, is_causal=True).squeeze(1))
        return functional.cross_entropy(x.flatten(0, 1), targets.flatten())


def plain_blocks():
    model = Block()

    def loss(_):
        x = torch.randint(64, (8, 17))
        return model(x[:, :-1], x[:, 1:])

    return train([torch.optim.SGD(model.parameters())], loss)


class LazyBatch(Mapping):
    """Its values are made when they are read, as those of a batch with random changes."""

    def __getitem__(self, key):
        return torch.randn(16, 8)

    def __iter__(self):
        return iter(["x"])

    def __len__(self):
        return 1


class TakesBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, batch):
        return self.layer(batch["x"])


def lazy_batch():
    model = TakesBatch()
    return train([torch.optim.SGD(model.parameters())], lambda _: model(LazyBatch()).square().mean())


def complex_numbers():
    model = nn.Linear(8, 4, dtype=torch.complex64)

    def loss(_):
        return model(torch.randn(16, 8, dtype=torch.complex64)).abs().square().mean()

    return train([torch.optim.SGD(model.parameters())], loss)


class OwnList(nn.Sequential):
    """Its own method gives the parameters that are trained."""

    def parameters(self, recurse=True):
        return (each for each in super().parameters(recurse) if each.requires_grad)


def own_list():
    model = OwnList(nn.Linear(8, 16).requires_grad_(False), nn.ReLU(), nn.Linear(16, 4))
    return train([torch.optim.SGD(model.parameters())], lambda _: model(torch.randn(16, 8)).square().mean())


def saved_each_step():
    """The weights go to others after each step."""
    model = mlp()

    def loss(_):
        torch.save(torch.zeros(2**21), io.BytesIO())
        return model(torch.randn(16, 8)).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def helper_first():
    """Every tenth step another optimizer trains something first."""
    model, helper = mlp(), mlp()
    optimizers = [torch.optim.SGD(helper.parameters()), torch.optim.SGD(model.parameters())]
    for number in range(40):
        if number % 10 == 0:
            train(optimizers[:1], lambda _: helper(torch.randn(16, 8)).square().mean(), 1)
        value = train(optimizers[1:], lambda _: model(torch.randn(16, 8)).square().mean(), 1)
    return value


def skipped():
    """A gradient scaler skips the steps of two batches, whose memory is soon that of others."""
    model, scaler = mlp(), torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(model.parameters())
    for number in range(60):
        value = model(torch.randn(16, 8) * (float("inf") if number in (30, 50) else 1.0)).square().mean()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return value


def saved_in_thread():
    """The training is in a thread, and saves there."""
    model, values = mlp(), []

    def loss(number):
        if number == 5:
            torch.save(torch.zeros(2**23), io.BytesIO())
        return model(torch.randn(16, 8)).square().mean()

    thread = threading.Thread(
        target=lambda: values.append(train([torch.optim.SGD(model.parameters())], loss)), daemon=True
    )
    thread.start()
    thread.join()
    return values[0]


def without_hash():
    class Head(nn.Linear):
        __hash__ = None

    model, head = mlp(), Head(4, 2)

    def loss(_):
        value = model(torch.randn(16, 8))
        return value.mean() + head(value.detach()).mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def precision():
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # with it, the older functions raise
    return muon()


class Unreadable:
    @property
    def edge_index(self):
        raise ValueError


def failing():
    class Net(nn.Linear):
        def forward(self, x, more=None):
            return super().forward(x)

    model = Net(8, 4)

    def loss(number):
        return model(torch.randn(16, 8), *[Unreadable()] * (number == 6)).mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def graphed():
    """Five steps, and one as part of a CUDA graph; its replays are no steps in Python."""
    model = mlp()

    def loss(number):
        if number == 5:
            torch.cuda.is_initialized = torch.cuda.is_current_stream_capturing = lambda: True
        return model(torch.randn(16, 8)).mean()

    return train([torch.optim.SGD(model.parameters())], loss, 6)


def penalty():
    """As many backwards as passes, but one of them is that of a penalty."""
    model = mlp()

    def loss(_):
        (model(torch.randn(16, 8)) - model(torch.randn(16, 8))).square().mean().backward()
        return sum(parameter.square().sum() for parameter in model.parameters())

    return train([torch.optim.SGD(model.parameters())], loss)


def online():
    """A loop over time with a backward at each time."""

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x, hidden):
            return (torch.tanh(self.layer(x + hidden)),)

    cell = Cell()

    def loss(_):
        hidden = torch.zeros(16, 8)
        for _ in range(3):
            (hidden,) = cell(torch.randn(16, 8), hidden)
            value = hidden.square().mean()
            value.backward()
            hidden = hidden.detach()
        return value.detach()

    return train([torch.optim.SGD(cell.parameters())], loss)


def mapped():
    """Inside a vmap, an input has no dimension of the batch."""
    model = nn.Linear(8, 4)
    parameters = dict(model.named_parameters())

    def one(x):
        return torch.func.functional_call(model, parameters, (x,)).square().mean()

    return train([torch.optim.SGD(model.parameters())], lambda _: torch.func.vmap(one)(torch.randn(16, 3, 8)).mean())


class Weighted(nn.Module):
    """The batch is in an object, or in a list in a dictionary; beside it is a tensor with the weights of classes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, batch, weights):
        x = batch["x"][0] if isinstance(batch, dict) else batch.x
        return self.layer(x).square().mean() * weights.mean()


def batch_object():
    model = Weighted()
    optimizer = torch.optim.SGD(model.parameters())
    return train([optimizer], lambda _: model(SimpleNamespace(x=torch.randn(16, 8)), torch.ones(5)))


def batch_nested():
    model = Weighted()
    optimizer = torch.optim.SGD(model.parameters())
    return train([optimizer], lambda _: model({"x": [torch.randn(16, 8)], "y": torch.ones(5)}, torch.ones(5)))


def forward_called():
    """Only a part of the model is called as a module."""
    model = Scaled()
    return train([torch.optim.SGD(model.parameters())], lambda _: model.forward(torch.randn(4, 5, 8)).square().mean())


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(8, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.layer(x) * self.scale


def frames():
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters())
    return train([optimizer], lambda _: model(torch.randn(4, 5, 8).flatten(0, 1)).view(4, 5, 4).mean(1).square().mean())


def sharpness_of_views():
    model = mlp()

    def loss(_):
        x = torch.randn(16, 2, 4)
        model(x.view(16, 8)).mean().backward()
        return model(x.view(16, 8)).mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def own_lbfgs():
    class Own(torch.optim.LBFGS):
        pass

    model = mlp()
    optimizer = Own(model.parameters(), max_iter=2)
    for _ in range(STEPS):

        def closure():
            optimizer.zero_grad()
            loss = model(torch.randn(16, 8)).square().mean()
            loss.backward()
            return loss

        value = optimizer.step(closure)
    return value


def growing():
    """Images become larger in the fifth step."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters())
    return train([optimizer], lambda i: model(torch.randn(16, 1, *[8 + 8 * (i > 4)] * 2)).square().mean())


def head_outside():
    """The logits are a product outside of the model's call, with the table of its words."""
    model = nn.Sequential(nn.Embedding(64, 8), nn.Linear(8, 8))

    def loss(_):
        x = torch.randint(64, (16, 4))
        return functional.cross_entropy((model(x) @ model[0].weight.T).flatten(0, 1), x.flatten())

    return train([torch.optim.SGD(model.parameters())], loss)


def evaluated_first():
    """An evaluation with autocast before a training without it."""
    model = mlp()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.eval()(torch.randn(4, 8))
    model.train()
    return train([torch.optim.SGD(model.parameters())], lambda _: model(torch.randn(16, 8)).square().mean())


def later_twice():
    """From the 20th step on, each batch is passed twice, each time with a backward."""
    model = mlp()

    def loss(number):
        x = torch.randn(16, 8)
        if number >= 20:
            model(x).square().mean().backward()
        return model(x).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss, 40)


def later_in_time():
    """From the 20th step on, a model is passed its own output, with a backward for each pass."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def loss(number):
        x = torch.randn(16, 8)
        for _ in range(3 if number >= 20 else 0):
            x = model(x)
            x.square().mean().backward()
            x = x.detach()
        return model(x).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss, 40)


def later_accumulated():
    """From the 20th step on, two micro-batches make a step; one of them fails and is passed again."""
    model = mlp()

    def loss(number):
        batches = [torch.randn(16, 8) for _ in range(2 if number >= 20 else 1)]
        if number == 30:
            try:
                model(batches[0][:, :4])
            except RuntimeError:
                model.zero_grad()
        for x in batches[1:]:
            model(x).square().mean().backward()
        return model(batches[0]).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss, 40)


def grown():
    """A layer is added to the model and to the optimizer."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters())

    def loss(number):
        if number == 10:
            model.insert(0, nn.Linear(8, 8))
            optimizer.add_param_group({"params": list(model[0].parameters())})
        return model(torch.randn(16, 8)).square().mean()

    return train([optimizer], loss, 20)


def exchanged():
    """The optimizer goes on with another model."""
    models = [mlp()]
    optimizer = torch.optim.SGD(models[0].parameters())

    def loss(number):
        if number == 30:
            models[0] = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 2))
            optimizer.param_groups[0]["params"] = list(models[0].parameters())
        return models[0](torch.randn(16, 8)).square().mean()

    return train([optimizer], loss, 40)


def backbone_later():
    """The first layer is trained from the fourth step on, and in bf16."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head, self.frozen = nn.Linear(8, 16), nn.Linear(16, 4), True

        def forward(self, x):
            with torch.set_grad_enabled(not self.frozen):
                x = self.backbone(x)
            return self.head(x)

    model = Model()

    def loss(number):
        model.frozen = number < 4
        with torch.autocast("cpu", torch.bfloat16, enabled=number >= 4):
            return model(torch.randn(16, 8)).float().square().mean()

    return train([torch.optim.SGD(model.parameters())], loss, 20)


class Loops(nn.Module):
    """Calls one layer as often as it is told."""

    def __init__(self, times):
        super().__init__()
        self.layer, self.times = nn.Linear(8, 8), times

    def forward(self, x):
        for _ in range(self.times):
            x = self.layer(x)
        return x


def shallower():
    """The model calls its layer twice instead of eight times after the third step."""
    model = Loops(8)

    def loss(number):
        model.times = 8 if number < 3 else 2
        return model(torch.randn(16, 8)).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss)


def deeper_fold():
    """A second training of equal parameters does more work."""

    def fold(times):
        model = Loops(times)
        return train([torch.optim.SGD(model.parameters())], lambda _: model(torch.randn(16, 8)).square().mean(), 20)

    return fold(1) + fold(8)


def turns():
    """Two optimizers of one model take turns."""
    model = mlp()
    optimizers = [torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters())]
    for number in range(40):
        value = train([optimizers[number // 10 % 2]], lambda _: model(torch.randn(16, 8)).square().mean(), 1)
    return value


def autocast_later():
    """The first half is in fp32, the second one in bf16."""
    model = mlp()

    def loss(number):
        with torch.autocast("cpu", torch.bfloat16, enabled=number >= 20):
            return model(torch.randn(16, 8)).float().square().mean()

    return train([torch.optim.SGD(model.parameters())], loss, 40)


def traced_and_freed():
    """A trained model is traced with gradients, called once more and forgotten."""
    models = [mlp()]
    value = train([torch.optim.SGD(models[0].parameters())], lambda _: models[0](torch.randn(16, 8)).square().mean())
    value = value + torch.jit.trace(models[0], torch.ones(2, 8))(torch.ones(2, 8)).mean()
    models[0](torch.ones(3, 8))
    gone = weakref.ref(models.pop())
    gc.collect()
    return value + (gone() is None)


class Chooses(nn.Module):
    """An operator that takes functions comes after a layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        functions = (lambda y: (y * 2,)), (lambda y: (y * 3,))
        return torch.ops.higher_order.cond(x.sum() > 0, *functions, (self.layer(x),))[0]


def chooses():
    model = Chooses()
    return train([torch.optim.SGD(model.parameters())], lambda _: model(torch.randn(16, 8)).square().mean())


def exported():
    """Half of the products are in autocast."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.first(x)
            with torch.autocast("cpu", torch.bfloat16):
                return self.second(x).float()

    model = torch.export.export(Model(), (torch.randn(16, 8),)).module()
    return train([torch.optim.SGD(model.parameters())], lambda _: model(torch.randn(16, 8)).square().mean())


def compiled_later():
    """A function that must be one graph is compiled in the second step."""
    whole = torch.compile(lambda x, weight: functional.linear(x, weight).tanh(), backend="aot_eager", fullgraph=True)

    class Model(nn.Linear):
        steps = 0

        def forward(self, x):
            self.steps += 1
            return whole(x, self.weight) if self.steps > 1 else super().forward(x)

    model = Model(8, 4)
    return train([torch.optim.SGD(model.parameters())], lambda _: model(torch.randn(16, 8)).square().mean())


def curvature():
    """Products of the Hessian in each step, as in AdaHessian and Sophia."""
    model = mlp()
    own = list(model.parameters())

    def loss(number):
        model(torch.randn(16, 8)).tanh().square().mean().backward(create_graph=True)
        gradients = [each.grad for each in own]
        products = torch.autograd.grad(gradients, own, [each.detach().sign() for each in gradients])
        for parameter, product in zip(own, products, strict=True):
            parameter.grad = parameter.grad.detach() + product
        return torch.zeros(())

    return train([torch.optim.SGD(own)], loss) + own[0].sum()


def forces():
    """A model returns the gradient of what it computes, as those of molecules do."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            x = x.requires_grad_()
            return torch.autograd.grad(self.net(x).tanh().sum(), x, create_graph=True)[0]

    model = Model()
    return train([torch.optim.SGD(model.parameters())], lambda _: model(torch.randn(16, 8)).square().mean())


def context():
    """Of two inputs, the second one is longer in the first two steps."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, context):
            return self.head(x + self.layer(context).mean(1, keepdim=True))

    model = Model()

    def loss(number):
        return model(torch.randn(16, 3, 8), torch.randn(16, 40 if number < 2 else 4, 8)).square().mean()

    return train([torch.optim.SGD(model.parameters())], loss, 40)


def backbone():
    """What a frozen backbone returns is the input of what is trained."""
    frozen, head = mlp(), nn.Linear(4, 2)

    def loss(_):
        with torch.no_grad():
            x = frozen(torch.randn(16, 8))
        return head(x).square().mean()

    return train([torch.optim.SGD(head.parameters())], loss)


class Casted(nn.Linear):
    """Casts its weights by itself, as in modded-nanogpt."""

    def forward(self, x):
        return functional.linear(x.bfloat16(), self.weight.bfloat16())


def casted():
    model = nn.Sequential(Casted(8, 16), nn.ReLU(), Casted(16, 4))
    return train([torch.optim.SGD(model.parameters())], lambda _: model(torch.randn(16, 8)).float().square().mean())


class Head(nn.Module):
    """Only the head is in autocast."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 64), nn.Linear(64, 1)
        self.middle = nn.Linear(64, 64)

    def forward(self, x):
        x = self.middle(self.body(x))
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(x)


def casted_head():
    model = Head()
    return train([torch.optim.SGD(model.parameters())], lambda _: model(torch.randn(16, 8)).float().square().mean())


def casted_inside():
    """Autocast begins inside of the model, as with accelerate, which wraps `forward`."""
    model = mlp()
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    return train([torch.optim.SGD(model.parameters())], lambda _: model(torch.randn(16, 8)).float().square().mean())


def casted_partly():
    """Of two models, so that no products are counted, one is in autocast."""
    first, second = nn.Linear(8, 4), nn.Linear(8, 4)

    def loss(_):
        with torch.autocast("cpu", torch.bfloat16):
            x = first(torch.randn(16, 8))
        return (second(torch.randn(16, 8)) + x).square().mean()

    return train([torch.optim.SGD([*first.parameters(), *second.parameters()])], loss)


def forward_only():
    pickle.dumps(nn.Module.__call__)  # raises where its name leads elsewhere
    return mlp()(torch.randn(16, 8)).mean()


def run(name: str) -> None:
    function: Callable[[], torch.Tensor] = globals()[name]
    torch.manual_seed(0)
    value = function().item().hex()
    dynamo = sys.modules.get("torch._dynamo.utils")
    graphs = dict(dynamo.counters["stats"]) | dict(dynamo.counters["graph_break"]) if dynamo else {}
    print(name, os.getpid(), value, sorted(graphs.items()), sep="\t", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in sys.argv[1:]:
        child = os.fork()
        if child == 0:
            try:
                run(chosen)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        os.waitpid(child, 0)
