"""Real architectures with random weights: builders that give (module, inputs(batch), dynamic)."""

import torch
from torch import nn


class DLRM(nn.Module):
    """A recommender: dense features, embedding bags over sparse ones, pairwise interaction.

    After Naumov et al., "Deep Learning Recommendation Model", 2019, arXiv:1906.00091.
    """

    def __init__(self, tables=(1000, 500, 200), dim=16, dense=13):
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(n, dim, mode="sum") for n in tables)
        self.bottom = nn.Sequential(nn.Linear(dense, 64), nn.ReLU(), nn.Linear(64, dim), nn.ReLU())
        count = len(tables) + 1
        self.register_buffer("rows", torch.tril_indices(count, count, -1)[0], persistent=False)
        self.register_buffer("cols", torch.tril_indices(count, count, -1)[1], persistent=False)
        pairs = count * (count - 1) // 2
        self.top = nn.Sequential(nn.Linear(dim + pairs, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, dense, sparse):
        x = self.bottom(dense)
        features = [x] + [bag(ids) for bag, ids in zip(self.bags, sparse, strict=True)]
        stacked = torch.stack(features, 1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))[:, self.rows, self.cols]
        return torch.sigmoid(self.top(torch.cat([x, products], 1)))


class Policy(nn.Module):
    """A recurrent control policy: encoder, two-layer LSTM with its state passed, two heads."""

    def __init__(self, observation=24, hidden=64, actions=6):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(observation, hidden), nn.Tanh())
        self.lstm = nn.LSTM(hidden, hidden, num_layers=2, batch_first=True)
        self.mean = nn.Linear(hidden, actions)
        self.value = nn.Linear(hidden, 1)

    def forward(self, observations, state):
        out, state = self.lstm(self.encode(observations), state)
        return {"action": torch.tanh(self.mean(out)), "value": self.value(out), "state": state}


def images(batch, size=224):
    return (torch.randn(batch, 3, size, size),), {}


def timm_model(name):
    def build():
        import timm

        return timm.create_model(name).eval(), images, ({0: "batch"},)

    build.needs_timm = True
    return build


def tokens(*names, length=24, vocabulary=1000, seed=0):
    def inputs(batch):
        generator = torch.Generator().manual_seed(seed + batch)
        made = {}
        for name in names:
            ids = torch.randint(3, vocabulary, (batch, length), generator=generator)
            if name.endswith("mask"):
                ids = (torch.arange(length) < 8 + ids % (length - 8)).long()
            made[name] = ids
        return (), made

    return inputs


def text_dynamic(*names):
    return {name: {0: "batch", 1: "length"} for name in names}


def bert():
    from transformers import BertConfig, BertModel

    names = ("input_ids", "attention_mask", "token_type_ids")
    module = BertModel(BertConfig(vocab_size=1000, num_hidden_layers=4)).eval()
    base = tokens(*names)

    def inputs(batch):
        made = base(batch)[1]
        return (), {**made, "token_type_ids": made["token_type_ids"] % 2}

    return module, inputs, text_dynamic(*names)


def t5():
    from transformers import T5Config, T5Model

    config = T5Config(vocab_size=1000, d_model=128, num_layers=3, num_heads=4, d_kv=32, d_ff=256)
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    base = tokens(*names)
    return (
        T5Model(config).eval(),
        lambda batch: ((), {**base(batch)[1], "use_cache": False}),
        {**text_dynamic("input_ids", "attention_mask"), "decoder_input_ids": {0: "batch"}},
    )


def whisper():
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        vocab_size=1000, d_model=64, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=128,
        decoder_ffn_dim=128, encoder_attention_heads=4, decoder_attention_heads=4,
        max_source_positions=100, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip

    def inputs(batch):
        _, made = tokens("decoder_input_ids", length=7)(batch)
        return (), {"input_features": torch.randn(batch, 80, 200), **made, "use_cache": False}

    dynamic = {"input_features": {0: "batch"}, "decoder_input_ids": {0: "batch"}}
    return WhisperModel(config).eval(), inputs, dynamic


def clip():
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128,
                     "num_hidden_layers": 2, "num_attention_heads": 4, "eos_token_id": 2},
        vision_config={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )  # fmt: skip

    def inputs(batch):
        _, made = tokens("input_ids", "attention_mask", length=12)(batch)
        return (), {**made, "pixel_values": torch.randn(batch, 3, 64, 64)}

    dynamic = {name: {0: "batch"} for name in ("input_ids", "attention_mask", "pixel_values")}
    return CLIPModel(config).eval(), inputs, dynamic


def wav2vec2():
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        vocab_size=32, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, conv_dim=(32,) * 7, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    module = Wav2Vec2Model(config).eval()
    return module, lambda batch: ((torch.randn(batch, 4000),), {}), ({0: "batch"},)


def decoder(family, fixed_length=False, **changes):
    """A small decoder of transformers' ``family``, without its cache."""

    def build():
        import transformers

        config = getattr(transformers, f"{family}Config")(vocab_size=1000, **changes)
        module = getattr(transformers, f"{family}ForCausalLM", None)
        module = module or getattr(transformers, f"{family}LMHeadModel")
        base = tokens("input_ids", length=16)
        dynamic = {"input_ids": {0: "batch"}} if fixed_length else text_dynamic("input_ids")
        return module(config).eval(), lambda b: ((), {**base(b)[1], "use_cache": False}), dynamic

    return build


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SMALL, "intermediate_size": 128, "num_key_value_heads": 2}


def dlrm():
    def inputs(batch):
        generator = torch.Generator().manual_seed(batch)
        sparse = [torch.randint(0, n, (batch, 5), generator=generator) for n in (1000, 500, 200)]
        return (torch.randn(batch, 13), sparse), {}

    return DLRM().eval(), inputs, ({0: "batch"}, [{0: "batch"}] * 3)


def policy():
    def inputs(batch):
        state = tuple(torch.randn(2, batch, 64) for _ in range(2))
        return (torch.randn(batch, 9, 24), state), {}

    return Policy().eval(), inputs, ({0: "batch"}, ({1: "batch"}, {1: "batch"}))


ARCHITECTURES = {
    "ResNet-50": timm_model("resnet50"),
    "ViT-B/16": timm_model("vit_base_patch16_224"),
    "ConvNeXt-T": timm_model("convnext_tiny"),
    "Swin-T": timm_model("swin_tiny_patch4_window7_224"),
    "BERT": bert,
    "T5": t5,
    "Whisper": whisper,
    "CLIP": clip,
    "wav2vec2": wav2vec2,
    "GPT-2": decoder("GPT2", n_embd=64, n_layer=2, n_head=4),
    "Llama": decoder("Llama", **GROUPED),
    "Mixtral": decoder("Mixtral", **GROUPED, num_local_experts=4),
    "Mamba": decoder("Mamba", fixed_length=True, hidden_size=64, num_hidden_layers=2),
    "DLRM": dlrm,
    "LSTM policy": policy,
}
