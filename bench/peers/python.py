#!/usr/bin/env python3
"""The Python peers of bench/step_bench.cpp: plain loops, Lightning, Ignite and Accelerate on the same models and batches.

    python bench/peers/python.py PEER MODEL THREADS FILE

Started by bench/step.py. Says "ready <loss>" after 128 steps, then answers each line "<steps>" with "<nanoseconds a step>
<nanoseconds before the first and after the last>". Needs torch and, for their peers, lightning, pytorch-ignite, accelerate.
"""

import os
import sys
import tempfile
import time
import warnings

# What libraries print goes where errors go; stdout is for the answers.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch
from torch import nn
from torch.nn import functional as F

BATCHES = 64
PROVEN = 128


class Mlp(nn.Module):
    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


class Mlp256(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 10)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.fc = nn.Linear(16 * 5 * 5, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.proj = nn.Linear(32, 32)
        self.norm2 = nn.LayerNorm(32)
        self.fc1 = nn.Linear(32, 128)
        self.fc2 = nn.Linear(128, 32)

    def forward(self, x):
        batch, steps, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, steps, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        heads = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(heads.transpose(1, 2).reshape(batch, steps, 32))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.position = nn.Parameter(torch.zeros(16, 32))
        self.block1 = Block()
        self.block2 = Block()
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.norm(self.block2(self.block1(self.embed(x) + self.position))).mean(1))


MODELS = {"micro": lambda: Mlp(4, 8, 2), "mlp": lambda: Mlp(784, 64, 10), "mlp256": Mlp256, "cnn": Cnn, "transformer": Transformer}


class Plain:
    """A loop by hand."""

    def __init__(self, net, batches, compiled=False, **options):
        self.net, self.batches = net, batches
        self.optimizer = torch.optim.Adam(net.parameters(), **options)
        self.loss = lambda x, y: F.cross_entropy(net(x), y)
        if compiled:
            self.loss = torch.compile(self.loss)

    def run(self, steps):
        begin = time.perf_counter_ns()
        for i in range(steps):
            x, y = self.batches[i % BATCHES]
            self.optimizer.zero_grad()
            self.loss(x, y).backward()
            self.optimizer.step()
        return time.perf_counter_ns() - begin


class Loader:
    """The batches as a loader of a given size."""

    def __init__(self, batches, count):
        self.batches, self.count = batches, count

    def __len__(self):
        return self.count

    def __iter__(self):
        for i in range(self.count):
            yield self.batches[i % BATCHES]


class Lightning:
    """Lightning's Trainer: by default with progress bar, CSV log, checkpoints and a logged loss; or with everything off."""

    def __init__(self, net, batches, barebones):
        import lightning

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = net
                self.begin = self.spent = 0

            def training_step(self, batch, batch_idx):
                x, y = batch
                loss = F.cross_entropy(self.net(x), y)
                if not barebones:
                    self.log("train/loss", loss, prog_bar=True)
                return loss

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters())

            def on_train_epoch_start(self):
                self.begin = time.perf_counter_ns()

            def on_train_epoch_end(self):
                self.spent = time.perf_counter_ns() - self.begin

        self.batches, self.module = batches, Module()
        self.folder = tempfile.TemporaryDirectory()
        if barebones:
            options = {"barebones": True}
        else:
            from lightning.pytorch.loggers import CSVLogger

            options = {"logger": CSVLogger(self.folder.name), "default_root_dir": self.folder.name}
        self.trainer = lightning.Trainer(accelerator="cpu", max_epochs=0, **options)

    def run(self, steps):
        self.trainer.fit_loop.max_epochs += 1
        self.trainer.fit(self.module, Loader(self.batches, steps))
        return self.module.spent


class Ignite:
    """create_supervised_trainer of pytorch-ignite, nothing attached."""

    def __init__(self, net, batches):
        from ignite.engine import Events, create_supervised_trainer

        self.batches, self.begin, self.spent = batches, 0, 0
        self.engine = create_supervised_trainer(net, torch.optim.Adam(net.parameters()), F.cross_entropy)
        self.engine.add_event_handler(Events.EPOCH_STARTED, self.started)
        self.engine.add_event_handler(Events.EPOCH_COMPLETED, self.completed)

    def started(self):
        self.begin = time.perf_counter_ns()

    def completed(self):
        self.spent = time.perf_counter_ns() - self.begin

    def run(self, steps):
        self.engine.run(Loader(self.batches, steps), max_epochs=1)
        return self.spent


class Accelerate:
    """The loop by hand with what Accelerate wraps."""

    def __init__(self, net, batches):
        from accelerate import Accelerator

        self.batches, self.accelerator = batches, Accelerator(cpu=True)
        self.net, self.optimizer = self.accelerator.prepare(net, torch.optim.Adam(net.parameters()))

    def run(self, steps):
        begin = time.perf_counter_ns()
        for i in range(steps):
            x, y = self.batches[i % BATCHES]
            self.optimizer.zero_grad()
            self.accelerator.backward(F.cross_entropy(self.net(x), y))
            self.optimizer.step()
        return time.perf_counter_ns() - begin


PEERS = {
    "python": Plain,
    "python-fused": lambda net, batches: Plain(net, batches, fused=True),
    "python-compiled": lambda net, batches: Plain(net, batches, compiled=True, fused=True),
    "lightning": lambda net, batches: Lightning(net, batches, False),
    "lightning-barebones": lambda net, batches: Lightning(net, batches, True),
    "ignite": Ignite,
    "accelerate": Accelerate,
}


def main():
    peer, model, threads, file = sys.argv[1:]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(threads))
    data = torch.load(file)
    net = MODELS[model]()
    net.load_state_dict(data["state_dict"])
    batches = [(x.clone(), y.clone()) for x, y in zip(data["inputs"], data["targets"])]
    one = PEERS[peer](net, batches)
    one.run(PROVEN)
    with torch.no_grad():
        loss = sum(F.cross_entropy(net(x), y).item() for x, y in batches) / BATCHES
    print(f"ready {loss:.9g}", file=answers, flush=True)
    for line in sys.stdin:
        steps = int(line)
        begin = time.perf_counter_ns()
        stepping = one.run(steps)
        around = time.perf_counter_ns() - begin - stepping
        print(f"{stepping / steps:.1f} {around:.1f}", file=answers, flush=True)


if __name__ == "__main__":
    main()
