"""DeepSpeed's JSON files, typed key by key."""

from pathlib import Path

import pytest

from destruct.config.deepspeed import EXAMPLES, FrozenJSON, TrainingJSON, read_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("bf_16", {"enabled": True}, "unknown key 'bf_16'"),
        ("zero_optimization.stge", 3, "unknown key 'zero_optimization.stge'"),
        ("optimizer.params.learning_rate", 1e-3, "unknown key 'optimizer.params.learning_rate'"),
        ("gradient_accumulation_steps", "auto", 'gradient_accumulation_steps = "auto" should be a valid integer'),
        ("gradient_accumulation_steps", "2", 'gradient_accumulation_steps = "2" is a string, not a number'),
        ("gradient_accumulation_steps", True, "gradient_accumulation_steps = true should be a valid integer"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps = 0 should be greater than or equal to 1"),
        ("gradient_accumulation_steps", 2.5, "gradient_accumulation_steps = 2.5 should be a valid integer"),
        ("gradient_accumulation_steps", ..., "'gradient_accumulation_steps' is missing"),
        ("bf16", "auto", 'bf16 = "auto" should be a section with keys of its own'),
        ("bf16.enabled", "true", 'bf16.enabled = "true" should be a valid boolean'),
        ("zero_optimization", "auto", 'zero_optimization = "auto" should be a section with keys of its own'),
        ("zero_optimization.stage", "3", 'zero_optimization.stage = "3" is a string, not a number'),
        ("zero_optimization.stage", "auto", 'zero_optimization.stage = "auto" should be a valid integer'),
        ("zero_optimization.stage", True, "zero_optimization.stage = true should be a valid integer"),
        ("zero_optimization.stage", 4, "zero_optimization.stage = 4 should be less than or equal to 3"),
        ("zero_optimization.offload_param", "cpu", 'zero_optimization.offload_param = "cpu" should be a section'),
        ("optimizer.params.lr", "1e-3", 'optimizer.params.lr = "1e-3" is a string, not a number'),
        ("optimizer.params.lr", "fast", "optimizer.params.lr = \"fast\" should be a valid number or 'auto'"),
        ("optimizer.params.lr", -1e-3, "optimizer.params.lr = -0.001 should be greater than 0 or 'auto'"),
        ("optimizer.params.lr", float("nan"), "optimizer.params.lr = NaN should be a finite number or 'auto'"),
        ("optimizer.params.betas", [0.9], "'optimizer.params.betas.1' is missing"),
        ("optimizer.params.betas", [0.9, 1.0], "optimizer.params.betas.1 = 1 should be less than 1"),
        ("optimizer.params.betas", ["0.9", 0.95], 'optimizer.params.betas.0 = "0.9" is a string, not a number'),
        ("optimizer.type", "Lion", "optimizer.type = \"Lion\" should be 'AdamW' or 'Adam'"),
        ("gradient_clipping", -1.0, "gradient_clipping = -1 should be greater than or equal to 0 or 'auto'"),
        ("gradient_clipping", True, "gradient_clipping = true should be a valid number or 'auto'"),
        ("data_types", ..., "'data_types' is missing"),
        ("data_types.grad_accum_dtype", "bf16", "data_types.grad_accum_dtype = \"bf16\" should be 'fp32'"),
        ("communication_data_type", ..., "'communication_data_type' is missing"),
        ("communication_data_type", "fp16", "communication_data_type = \"fp16\" should be 'fp32'"),
        ("fp16", {"enabled": True}, "fp16 is not supported"),
        ("fp16", {"enabled": "auto"}, "fp16 is not supported"),
        ("fp16", True, "fp16 is not supported"),
        ("scheduler", {"type": "OneCycle"}, "scheduler.type = \"OneCycle\" should be 'WarmupLR', 'WarmupDecayLR' or"),
        ("scheduler", {"type": "WarmupLR", "params": {"warmup_max_lr": -1}}, "scheduler.params.warmup_max_lr = -1"),
        (
            "scheduler",
            {"type": "WarmupLR", "params": {"cos_min_ratio": 0.1}},
            "scheduler: WarmupLR does not read params",
        ),
        (
            "zero_optimization",
            {"stage": 2, "offload_param": {"device": "cpu"}},
            "zero_optimization: offload_param",
        ),
        ("zero_optimization.stage", 0, "bf16.enabled = true with zero_optimization.stage = 0"),
    ],
)
def test_a_fault_in_the_training_json_is_refused(files, refusal, key, value, problem):
    files.change_train({key: value})
    assert refusal(read_json, files.train, TrainingJSON)[0].startswith(f"{files.train}: {problem}")


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("gradient_acumulation_steps", "did you mean 'gradient_accumulation_steps'?"),
        ("zero_optimization.overlap_com", "did you mean 'zero_optimization.overlap_comm'?"),
        ("optimizer.params.beta", "did you mean 'optimizer.params.betas'?"),
        ("stage", "did you mean 'zero_optimization.stage'?"),
    ],
)
def test_a_misspelt_json_key_gets_the_nearest_known_one(files, refusal, key, remedy):
    files.change_train({key: 1})
    assert refusal(read_json, files.train, TrainingJSON)[1] == remedy


THRESHOLD = "zero_optimization.stage3_param_persistence_threshold"


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        (THRESHOLD, 100_000, f"{THRESHOLD}: is 100000: what stays gathered"),
        (THRESHOLD, 1, f"{THRESHOLD}: is 1: what stays gathered"),
        (THRESHOLD, False, f"{THRESHOLD} = false should be a valid integer"),
        (THRESHOLD, ..., f"'{THRESHOLD}' is missing"),
        ("zero_optimization.stage", 2, "zero_optimization.stage = 2 should be greater than or equal to 3"),
        ("optimizer", {"type": "AdamW"}, "unknown key 'optimizer'"),
        ("fp16", {"enabled": True}, "fp16 is not supported"),
        ("bf16", "off", "bf16 = \"off\" should be a section with keys of its own or 'auto'"),
    ],
)
def test_a_fault_in_the_frozen_json_is_refused(files, refusal, key, value, problem):
    files.change_frozen({key: value})
    assert refusal(read_json, files.frozen, FrozenJSON)[0].startswith(f"{files.frozen}: {problem}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ", line 1 is not JSON: Expecting value"),
        ('{"a": 1,\n}', ", line 2 is not JSON: "),
        (
            '{"bf16": {"enabled": true, "enabled": false}}',
            " is not JSON: the key 'enabled' appears twice in one object",
        ),
        ("[1]", " is not a JSON object"),
        ("[" * 100_000, " is not JSON: maximum recursion depth exceeded"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(files, refusal, text, problem):
    files.train.write_text(text)
    assert refusal(read_json, files.train, TrainingJSON)[0].startswith(f"{files.train}{problem}")


def test_a_count_written_with_an_exponent_is_the_count(files):
    """DeepSpeed's own examples write bucket sizes so, and JSON makes floats of them."""
    text = files.train.read_text().replace('"stage": 3', '"stage": 3, "reduce_bucket_size": 5e8')
    files.train.write_text(text)
    size = read_json(files.train, TrainingJSON).zero_optimization.reduce_bucket_size
    assert type(size) is int and size == 500_000_000


def test_an_fp16_block_that_is_off_changes_nothing(files):
    plain = read_json(files.train, TrainingJSON)
    files.change_train({"fp16": {"enabled": False, "loss_scale": 0}})
    assert read_json(files.train, TrainingJSON) == plain


@pytest.mark.parametrize("section", EXAMPLES)
def test_the_shipped_examples_are_accepted(section):
    read_json(ROOT / EXAMPLES[section], section)
