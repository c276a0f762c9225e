"""The commands of the console script, one file each."""

COMMANDS = {
    "fit": ("train", "train a model: every option in YAML (--config FILE, several may be given) or as a flag"),
    "validate": ("train", "loss and perplexity of a checkpoint on the validation split"),
    "test": ("train", "loss and perplexity of a checkpoint on the test split"),
    "predict": ("train", "write a checkpoint's loss and likeliest token at every position of the test split"),
    "plan": ("plan", "estimate what a config costs on a device; find the fastest layout that fits"),
    "prepare": ("prepare", "tokenise a config's documents into a folder that training maps into memory"),
    "tokenizer": ("tokenizer", "train a byte-level BPE vocabulary on a config's training documents"),
    "generate": ("generate", "continue a prompt, or many, from a checkpoint"),
    "evaluate": ("evaluate", "perplexity and bits per byte of a text, or tasks of lm-evaluation-harness"),
    "serve": ("serve", "serve a checkpoint over OpenAI's HTTP API, many requests in one batch"),
    "convert": ("convert", "turn a published model's folder into a checkpoint, or a checkpoint into such a folder"),
    "study": ("study", "run a grid of trainings (depth, width, any key; seeds) and report on it"),
    "inspect": ("inspect", "show a text's attention, logit lens and next tokens; ablate heads"),
    "explore": ("explore", "explore a model in the browser: type, see every matrix, take heads out, follow a number"),
    "doctor": ("doctor", "find what is wrong with the installation, the machine, a config or a checkpoint"),
    "completion": ("completion", "print a script with which your shell completes commands and options"),
    "bench": ("bench", "compare speed and memory with other projects and the machine's limits"),
}
"""The module of each command, and what it does in a line."""
