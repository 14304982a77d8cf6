"""A recurrent language model whose batches have the sequence first, so that its first dimension is no batch size."""

import torch
import truth
from torch import nn

LENGTH, BATCH, STEPS = 35, 20, 60


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.rnn, self.decoder = nn.Embedding(200, 64), nn.LSTM(64, 64, 2), nn.Linear(64, 200)

    def forward(self, tokens, hidden):
        output, hidden = self.rnn(self.encoder(tokens), hidden)
        return nn.functional.log_softmax(self.decoder(output).view(-1, 200), 1), hidden


def main():
    torch.manual_seed(0)
    model, criterion = Model(), nn.NLLLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    hidden = (torch.zeros(2, BATCH, 64), torch.zeros(2, BATCH, 64))
    for batch in range(STEPS):
        data = torch.randint(0, 200, (LENGTH, BATCH))
        hidden = tuple(part.detach() for part in hidden)
        model.zero_grad()
        output, hidden = model(data, hidden)
        loss = criterion(output, data.roll(-1, 0).view(-1))
        loss.backward()
        optimizer.step()
        truth.step(BATCH, LENGTH * BATCH)
        if batch % 10 == 0:
            print(
                f"| epoch   1 | {batch:5d}/{STEPS:5d} batches | lr 1.00 | ms/batch 12.00 | loss {loss.item():5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
