"""Readers and writers of other people's weight files, and tables that map their names to ours.

Nothing here executes anything found in a file, and nothing needs torch:

* `torch_zip`: `.pt`, `.pth` and `.bin` files of `torch.save` (zip form), and the weights of
  TorchScript archives, mapped into memory.
* `torch_legacy`: the form of `torch.save` before torch 1.6.
* `safetensors`: safetensors files with their metadata, mapped into memory.
* `onnx`: the weights of ONNX files, with the names that exports from torch take from kernels.
* `tensor_bundle`: checkpoints of TensorFlow, mapped into memory.
* `protobuf`: the wire form that the last two are written in.
* `state_dicts`: the tensors of any of these files, and of folders in Hugging Face's form.
* `names`: `NameTable`, foreign name <-> our path with a transform, every mismatch in one error.
* `rules`: rules that the tables of many transformers share, BERT's among them.
* `configs`: the entries of Hugging Face's `config.json`, every problem in one error.

The rooms are imported by name::

    from jaxlab.checkpoints.foreign import torch_zip

    state_dict = torch_zip.read_torch_zip("clip_cn_vit-b-16.pt")["state_dict"]
"""
