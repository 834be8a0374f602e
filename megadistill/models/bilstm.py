"""Tang's BiLSTM (Tang et al. 2019, 3.1) as a transformers model: saved, loaded and asked like any other."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


@cache
def register() -> tuple[Any, Any]:
    """Let transformers' Auto classes know it; a folder of it needs this package to be read.

    Returns:
        its config class and its model class, made here since transformers is slow to import.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    class BiLstmConfig(PretrainedConfig):
        """Sizes; `hidden_size` is of one direction."""

        model_type = "megadistill-bilstm"

        def __init__(
            self,
            vocab_size: int = 30522,
            embedding_size: int = 300,
            hidden_size: int = 150,
            inner_size: int = 200,
            dropout: float = 0.1,
            multichannel: bool = True,
            siamese: bool = False,
            initializer_range: float = 0.1,
            **others: Any,
        ) -> None:
            self.vocab_size, self.embedding_size = vocab_size, embedding_size
            self.hidden_size, self.inner_size, self.dropout = hidden_size, inner_size, dropout
            self.multichannel, self.siamese = multichannel, siamese
            self.initializer_range = initializer_range
            self.num_hidden_layers = self.num_attention_heads = 1
            self.type_vocab_size = 2
            super().__init__(**others)

    class BiLstmForSequenceClassification(PreTrainedModel):
        """The body, a layer with ReLU, and the classes."""

        config_class = BiLstmConfig
        base_model_prefix = "bilstm"

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.bilstm = Body(config)
            features = 2 * config.hidden_size * (4 if config.siamese else 1)
            self.inner = nn.Linear(features, config.inner_size)
            self.dropout = nn.Dropout(config.dropout)
            self.classifier = nn.Linear(config.inner_size, config.num_labels)
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            elif isinstance(module, nn.Linear | nn.LSTM):
                module.reset_parameters()

        def get_input_embeddings(self) -> nn.Embedding:
            return self.bilstm.words

        def before_output(self, hidden: Tensor) -> Tensor:
            """What lies between the features and the output layer (see `models.heads`)."""
            return self.dropout(torch.relu(self.inner(hidden)))

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, **_: Any
        ) -> Any:
            row = self.bilstm(input_ids, attention_mask, token_type_ids).last_hidden_state[:, 0]
            return SequenceClassifierOutput(logits=self.classifier(self.before_output(row)))

    AutoConfig.register(BiLstmConfig.model_type, BiLstmConfig)
    AutoModelForSequenceClassification.register(BiLstmConfig, BiLstmForSequenceClassification)
    return BiLstmConfig, BiLstmForSequenceClassification


class Body(nn.Module):
    """From ids to one vector a row."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.embedding_size)
        width = config.embedding_size
        if config.multichannel:  # a second copy that stays as it started (Kim 2014)
            self.fixed = nn.Embedding(config.vocab_size, config.embedding_size)
            self.fixed.weight.requires_grad_(False)
            width *= 2
        self.ahead = nn.LSTM(width, config.hidden_size, batch_first=True)
        self.back = nn.LSTM(width, config.hidden_size, batch_first=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, **_: Any) -> Any:
        """Every position of `last_hidden_state` [B, L, F] holds its row's features."""
        from transformers.modeling_outputs import BaseModelOutput

        words = self.words(input_ids)
        if self.config.multichannel:
            words = torch.cat([words, self.fixed(input_ids)], dim=-1)
        lengths = attention_mask.sum(1)
        if self.config.siamese:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            first = ((types == 0) & attention_mask.bool()).sum(1)
            a = self._read(words, torch.zeros_like(first), first)
            b = self._read(words, first, lengths - first)
            row = torch.cat([a, b, a * b, (a - b).abs()], dim=-1)
        else:
            row = self._read(words, torch.zeros_like(lengths), lengths)
        states = row.unsqueeze(1).expand(-1, input_ids.shape[1], -1)
        return BaseModelOutput(last_hidden_state=states, hidden_states=(words, states))

    def _read(self, words: Tensor, start: Tensor, length: Tensor) -> Tensor:
        """[B, 2 hidden]: where both directions end in the `length` words from `start` on; nothing read is zeros."""
        place = torch.arange(words.shape[1], device=words.device).unsqueeze(0)
        last = (length - 1).clamp(min=0).unsqueeze(1)
        ends = []
        for lstm, order in ((self.ahead, place), (self.back, last - place)):
            index = (start.unsqueeze(1) + order.clamp(min=0)).clamp(max=words.shape[1] - 1)
            states, _ = lstm(words.gather(1, index.unsqueeze(-1).expand_as(words)))
            ends.append(states.gather(1, last.unsqueeze(-1).expand(-1, 1, states.shape[-1])).squeeze(1))
        return torch.cat(ends, dim=-1) * (length > 0).unsqueeze(1)
