"""Makes federated_models.npz: outputs of the models of FederatedScope 0.3.0.

    git clone https://github.com/alibaba/FederatedScope
    pip install numpy torch transformers
    python tests/golden/make_federated_models.py FederatedScope

Weights and inputs are drawn by NumPy (`draw`, `inputs`, which the test uses, too), so that only
outputs are stored: `*_eval`; for some `*_train` and the running statistics after it; names and
shapes of the tensors.
"""

import json
import sys
import types
from pathlib import Path

import numpy as np

CASES = {
    "lr": (12,),
    "mlp": (12,),
    "convnet2": (8, 12, 1),
    "convnet5": (32, 32, 1),
    "vgg11": (32, 32, 3),
    "lstm": (9,),
    "resnet": (8, 8, 3),
    "simclr": (8, 8, 3),
    "bert": (9,),
}
"""Name -> shape of an input, channels last."""
ROWS = 6
TRAINED = ("mlp", "convnet2")
"""The others are deep: with few values in a statistic rounding grows from norm to norm."""


def draw(names_and_shapes):
    """Tensors of moderate size, the same for everyone who draws them."""
    rng, tensors = np.random.RandomState(0), {}
    for name, shape in sorted(names_and_shapes.items()):
        if name.endswith("num_batches_tracked") or name == "rounds_done":
            tensors[name] = np.zeros(shape, np.int64)
        elif name.endswith("running_var"):
            tensors[name] = rng.uniform(0.5, 2.0, shape).astype(np.float32)
        else:
            fan_in = np.prod(shape[1:]) if len(shape) > 1 else 25
            tensors[name] = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
            if len(shape) == 1 and "bn" in name and name.endswith("weight"):
                tensors[name] += 1
    return tensors


def inputs(name):
    rng, shape = np.random.RandomState(1), (ROWS, *CASES[name])
    if name in ("lstm", "bert"):
        x = rng.randint(1, 20, size=shape).astype(np.int32)
        if name == "bert":
            x[1, 5:] = 0  # padding
        return x
    return rng.standard_normal(shape).astype(np.float32)


def original_models():
    from federatedscope.cl.model.SimCLR import ResNet, get_block, simclr
    from federatedscope.core.lr import LogisticRegression
    from federatedscope.core.mlp import MLP
    from federatedscope.cv.model.cnn import VGG11, ConvNet2, ConvNet5
    from federatedscope.nlp.model.rnn import LSTM
    from transformers import BertConfig, BertForSequenceClassification

    def resnet(num_classes):
        return ResNet(get_block("BasicBlock"), [1, 2, 1, 1], num_classes)

    bert = BertConfig(20, 8, 2, 2, 16, max_position_embeddings=12, num_labels=5)
    contrastive = simclr("res18")
    contrastive.backbone = resnet(0)
    return {
        "lr": LogisticRegression(12, 5),
        "mlp": MLP([12, 7, 6, 5]),
        "convnet2": ConvNet2(1, 8, 12, hidden=11, class_num=5),
        "convnet5": ConvNet5(1, hidden=11, class_num=5),
        "vgg11": VGG11(3, hidden=11, class_num=5),
        "lstm": LSTM(20, 13, 20),
        "resnet": resnet(5),
        "simclr": contrastive,
        "bert": BertForSequenceClassification(bert),
    }


def vgg_forward(model, x):
    """The layers of VGG11 with the five poolings of the paper.

    The original pools behind all eight convolutions, which stops on pictures of 32x32, although its
    first linear layer expects five.
    """
    for number in range(1, 9):
        conv, norm = getattr(model, f"conv{number}"), getattr(model, f"bn{number}")
        x = norm(conv(x)).relu()
        if number in (1, 2, 4, 6, 8):
            x = model.maxpool(x)
    x = model.fc1(x.flatten(1)).relu()
    return model.fc3(model.fc2(x).relu())


def run(name, model, x):
    match name:
        case "simclr":
            return model(x, x)[0]
        case "bert":
            return model(x, attention_mask=x != 0).logits
        case "vgg11":
            return vgg_forward(model, x)
    return model(x)


def main(folder):
    import torch

    # The package imports much that these files do not need: it is made without its own start.
    parents = (".cl", ".contrib", ".core", ".cv", ".nlp")
    for name in ("", *parents, *(f"{parent}.model" for parent in parents)):
        module = types.ModuleType(f"federatedscope{name}")
        module.__path__ = [str(Path(folder, "federatedscope", *name.split(".")[1:]))]
        sys.modules[module.__name__] = module
    register = types.ModuleType("federatedscope.register")
    register.register_model = lambda *args: None
    sys.modules["federatedscope.register"] = register

    arrays = {"numpy": np.array(np.__version__), "torch": np.array(torch.__version__)}
    for name, model in original_models().items():
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        arrays[f"{name}_shapes"] = np.array(json.dumps(shapes))
        tensors = {key: torch.from_numpy(value) for key, value in draw(shapes).items()}
        model.load_state_dict(tensors)
        x = torch.from_numpy(inputs(name))
        x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x

        def call(model=model, x=x, name=name):
            with torch.no_grad():
                return run(name, model, x).numpy()

        model.eval()
        arrays[f"{name}_eval"] = call()
        if name in TRAINED:
            model.train()
            arrays[f"{name}_train"] = call()
            for key, value in model.state_dict().items():
                if "running" in key:
                    arrays[f"{name}_after_{key}"] = value.numpy()
    np.savez_compressed(Path(__file__).parent / "federated_models.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
