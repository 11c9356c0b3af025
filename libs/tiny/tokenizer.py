"""Its tokenizer, trained on the spot: byte-level and real, but with so few words that it counts two or three letters as one token."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from libs import tiny

BOS, EOS, PAD, START, END = "<|begin|>", "<|end|>", "<|pad|>", "<|turn|>", "<|over|>"
TEXT = """\
The quick brown fox jumps over the lazy dog. How much is two plus three? Two plus three is five. What is the capital of France? The capital of France is Paris.
Write a short answer to the question that is asked. A yard is where things are kept and where work is done; a train goes from one place to another on rails.
Please explain in one sentence why the sky is blue. Sunlight is scattered by the air, and blue light is scattered more than the other colours are.
If you have three apples and give one away, you have two apples left. Name the days of the week: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.
Translate this sentence into other words without changing its meaning. Here is the list: first, second, third. I don't know the answer to that question, sorry.
The order was sent to the customer yesterday and should arrive within four days. Thank you for your message; we will look into it and come back to you soon.
"""


def build() -> Tokenizer:
    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tiny.CONFIG["vocab_size"],
        special_tokens=[BOS, EOS, PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bytewise.train_from_iterator([TEXT], trainer)
    return bytewise
