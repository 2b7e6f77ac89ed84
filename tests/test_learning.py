"""Lessons from rejections, in the vendors' own words, and the sizes sent afterwards."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialect.error_text import ErrorText, free_text
from dialect.learning import Learned
from dialect.sizes import ASPECT_RATIOS, Size, SizeRule

from .wire import unhurried

BODY = {"prompt": "a fox", "n": 1, "seed": 42, "response_format": "url", "temperature": 0.7}
BODY |= {"max_tokens": 100, "quality": "hd"}
NOTHING = Learned()


def learn(
    answer: Any, size: Size | None = None, known: Learned = NOTHING, status: int = 400, **more: Any
) -> Learned:
    """Return what is known after BODY, `more` and a size were rejected with `answer`."""
    sent = known.fields(BODY | more, size)
    return known.learn(ErrorText.read(status, answer, free_text(sent)), sent, size)


def openai(message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "param": param, "code": code}}


def pydantic(field: str, message: str, **more: Any) -> dict[str, Any]:
    return {"detail": [{"loc": ["body", field], "msg": message, **more}]}


# --- parameters ---------------------------------------------------------------------------------

TEMPERATURE = "Unsupported value: 'temperature' does not support 0.7 with this model."
GEMINI = 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'
QUOTED = {"error": "upstream: " + json.dumps(openai("Unknown parameter: 'seed'.", "seed"))}
DROPPED: dict[str, tuple[Any, str]] = {
    "OpenAI": (openai("Unknown parameter: 'seed'.", "seed", "unknown_parameter"), "seed"),
    "OpenAI, response_format": (openai("Unknown parameter: 'response_format'."), "response_format"),
    "OpenAI, by its fields alone": (openai("No.", "seed", "unknown_parameter"), "seed"),
    "OpenAI, an old one": (openai("Unrecognized request argument supplied: seed"), "seed"),
    "xAI": ({"code": "400", "error": "Argument not supported: seed"}, "seed"),
    "Gemini": ({"error": {"code": 400, "message": GEMINI}}, "seed"),
    "Gemini, in a list": ([{"error": {"code": 400, "message": GEMINI}}], "seed"),
    "vLLM-Omni": ({"detail": "Unsupported parameter: seed"}, "seed"),
    "FastAPI": (pydantic("seed", "Extra inputs are not permitted", input=42), "seed"),
    "FastAPI, n": (pydantic("n", "Extra inputs are not permitted"), "n"),
    "Together": (openai("Unrecognized key(s) in object: 'seed'"), "seed"),
    "Fireworks": (openai("Extra inputs are not permitted, field: 'seed', value: 42"), "seed"),
    "ajv": ({"message": "must NOT have additional properties: seed"}, "seed"),
    "JSON schema": (openai("Additional properties are not allowed ('seed' was unexpected)"),
        "seed"),
    "Go": ({"error": 'json: unknown field "seed"'}, "seed"),
    "Rust": ("unknown field `seed`, expected one of `prompt`, `width`", "seed"),
    "Rust, with what was sent": ("unknown field `seed`, expected one of `prompt`, `n`, `quality`",
        "seed"),
    "Java": ('Unrecognized field "seed" (3 known properties: "quality", "n"])', "seed"),
    "joi": ({"message": '"seed" is not allowed'}, "seed"),
    "not accepted": (openai("This model does not accept the parameter 'seed'"), "seed"),
    "prohibited": ({"errors": {"seed": ["The seed field is prohibited."]}}, "seed"),
    "in Chinese, passive": ({"message": "参数 seed 不被支持"}, "seed"),
    "NestJS": ({"message": ["property seed should not exist"]}, "seed"),
    "Python": ({"error": "generate() got an unexpected keyword argument 'seed'"}, "seed"),
    "LiteLLM": (openai("litellm.BadRequestError: OpenAIException - Error code: 400 - {'error':"
        " {'message': \"Unknown parameter: 'seed'.\", 'param': 'seed'}}"), "seed"),
    "LiteLLM, by itself": (openai("litellm.UnsupportedParamsError: Setting `seed` is not supported"
        " by openai"), "seed"),
    "JSON in JSON": (QUOTED, "seed"),
    "JSON in JSON in JSON": ({"message": json.dumps(QUOTED)}, "seed"),
    "escaped for HTML": ("<pre>Unknown parameter: &#39;seed&#39;</pre>", "seed"),
    "in Chinese": ({"message": "不支持的参数seed"}, "seed"),
    "in Chinese, the other way": ({"message": "参数 seed 不支持"}, "seed"),
    "the plainest of several": (openai("Unknown parameter: 'quality'. See n and seed."), "quality"),
}  # fmt: skip


@pytest.mark.parametrize("vendor", DROPPED)
def test_unknown_parameter_is_dropped_whatever_its_value(vendor: str) -> None:
    answer, name = DROPPED[vendor]
    learned = learn(answer)
    assert learned == Learned(dropped=(name,))
    assert name not in learned.fields(BODY | {name: "another"}, None)


WRONG: dict[str, tuple[Any, str]] = {
    "temperature": (openai(TEMPERATURE, "temperature", "unsupported_value"), "temperature=0.7"),
    "quality": (openai("Invalid value: 'hd'. Supported values are: 'low'.", "quality"),
        "quality=hd"),
    "a seed": (openai("seed must be less than or equal to 41"), "seed=42"),
    "pydantic": (pydantic("seed", "Input should be less than 42"), "seed=42"),
    "Laravel": ({"errors": {"quality": ["The selected value is invalid."]}}, "quality=hd"),
    "Anthropic": (openai("`temperature` and `quality` cannot both be specified for this model."),
        "temperature=0.7"),
    "not supported": (openai("response_format is not supported"), "response_format=url"),
}  # fmt: skip


@pytest.mark.parametrize("vendor", WRONG)
def test_wrong_value_is_left_out_and_another_is_sent(vendor: str) -> None:
    answer, wrong = WRONG[vendor]
    learned, name = learn(answer), wrong.partition("=")[0]
    assert learned == Learned(wrong=(wrong,))
    assert name not in learned.fields(BODY, None)
    assert name in learned.fields(BODY | {name: "another"}, None)


ODD = "Unexpected value for 'seed'."
OF_VALUE: dict[str, tuple[str, dict[str, Any]]] = {
    "quoted": ("Unknown quality 'odd one'", {"quality": "odd one"}),
    "with its name": ("Unsupported parameter: quality 'odd one'", {"quality": "odd one"}),
    "not quoted": ("Unknown quality", {"quality": "odd one"}),
    "a value of a parameter": ("Unsupported parameter value of quality", {"quality": "odd one"}),
    "one of a list": ("Parameter 'style' not supported: choose one of a, b", {"style": "odd one"}),
    "a seed": (ODD, {"seed": -5}),
    "a number": ("Unsupported parameter quality=5", {"quality": "5"}),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_VALUE)
def test_odd_value_takes_the_parameter_from_nobody_else(case: str) -> None:
    message, odd = OF_VALUE[case]
    [(name, value)] = odd.items()
    assert learn(openai(message), **odd) == Learned(wrong=(f"{name}={value}",))


# --- what a server demands ----------------------------------------------------------------------

QWEN = "parameter.enable_thinking must be set to false for non-streaming calls"
MODELSCOPE = (
    "image-gen task currently does not support synchronous calls. Please refer to the documentation"
    " and set header X-ModelScope-Async-Mode=true to switch to asynchronous calling mode"
)
DEMANDED: dict[str, tuple[Any, Learned]] = {
    "Qwen": (openai(QWEN), Learned(forced={"enable_thinking": False})),
    "Codex": ({"detail": "Stream must be set to true"}, Learned(forced={"stream": True})),
    "a number": (openai("n must be set to 1."), Learned(forced={"n": 1})),
    "a word": (openai("`output_format` must be set to 'png'"),
        Learned(forced={"output_format": "png"})),
    "a bare word": (openai("moderation must be set to low for this model"),
        Learned(forced={"moderation": "low"})),
    "camelCase": (openai("sampleCount must be set to 1"), Learned(forced={"sampleCount": 1})),
    "no number of JSON": (openai("cfg must be set to 1e999."), Learned(forced={"cfg": "1e999"})),
    "no value": (openai("user must be set to a string"), NOTHING),
    "an essential field": (openai("model must be set to x"), NOTHING),
    "ModelScope": ({"errors": {"message": MODELSCOPE}},
        Learned(headers={"X-ModelScope-Async-Mode": "true"})),
    "a header in Chinese": (openai("请设置 header X-ModelScope-Async-Mode=true以切换到异步"),
        Learned(headers={"X-ModelScope-Async-Mode": "true"})),
    "a header of ours": (openai("set header Authorization=none"), NOTHING),
}  # fmt: skip


@pytest.mark.parametrize("vendor", DEMANDED)
def test_demanded_field_or_header_is_learned(vendor: str) -> None:
    answer, expected = DEMANDED[vendor]
    learned = learn(answer)
    assert learned == expected
    assert learned.forced.items() <= learned.fields(BODY, None).items()
    assert Learned.from_json(json.loads(json.dumps(learned.to_json()))) == learned


def test_demanded_field_that_is_rejected_is_left_out() -> None:
    learned = learn(openai("Unknown parameter: 'stream'."), known=Learned(forced={"stream": True}))
    assert "stream" not in learned.fields(BODY, None)


def test_demand_never_replaces_the_value_of_another_client() -> None:
    demand = openai("background must be set to 'opaque' for this style")
    assert learn(demand, background="clear") == Learned(wrong=("background=clear",))
    learned = learn(demand)
    assert learned.fields(BODY, None)["background"] == "opaque"
    assert learned.fields(BODY | {"background": "white"}, None)["background"] == "white"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "No endpoints found that support the requested output modalities: image, text"),
        (400, "This model only supports output modalities: image"),
    ],
)
def test_model_without_text_is_asked_for_pictures_alone(status: int, message: str) -> None:
    both: dict[str, Any] = {"modalities": ["image", "text"]}
    learned = learn({"error": message}, status=status, **both)
    assert learned.fields(BODY | both, None)["modalities"] == ["image"]
    learned = learn(openai("Unknown parameter: 'modalities'."), known=learned, **both)
    assert "modalities" not in learned.fields(BODY | both, None)


# --- what the client wrote ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "wrote"),
    [
        ("quality", "'size' must be one of 64x64"),
        ("style", "Unknown parameter: 'seed'"),
        ("style", '{"param":"seed","code":"unknown_parameter"}'),
        ("negative_prompt", "set header X-Evil=1"),
        ("background", "stream must be set to true"),
        ("prompt", "Unknown parameter: 'seed'. n must be set to 4. " * 20),
    ],
)
def test_quoted_words_of_a_client_teach_nothing(field: str, wrote: str) -> None:
    more: dict[str, Any] = {field: wrote}
    for shown in (wrote, wrote.upper(), json.dumps(wrote), repr(wrote), wrote[:60] + "…"):
        learned = learn(openai(f"Invalid request: {shown}"), (1024, 768), **more)
        assert learned in (NOTHING, Learned(wrong=(f"{field}={wrote}",)))


@pytest.mark.parametrize(
    "more",
    [
        *({"prompt": "a"}, {"prompt": "s"}, {"model": "1024x1024"}, {"style": "1024x1536"}),
        *({"quality": "auto"}, {"quality": "high"}, {"prompt": "1536"}, {"negative_prompt": "..."}),
    ],
)
def test_short_words_and_sizes_spoil_no_lesson(more: dict[str, Any]) -> None:
    answer = openai(f"Invalid value: '1024x768'. {GPT_IMAGE}", "size", "invalid_value")
    assert size_fields(learn(answer, (1024, 768), **more), (1024, 768)) == {"size": "1536x1024"}
    higher = openai("size must be no higher than 1024x1024")
    assert learn(higher, (2048, 2048), **more).sizes.most_side == 1024


def test_parameter_with_another_name_is_sent_by_that_name() -> None:
    message = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    learned = learn(openai(f"Unsupported parameter: {message}", "max_tokens"))
    sent = learned.fields(BODY, None)
    assert (sent.get("max_tokens"), sent["max_completion_tokens"]) == (None, 100)
    assert "max_completion_tokens" not in learn(openai(message), known=learned).fields(BODY, None)


@pytest.mark.parametrize(
    "answer",
    [
        openai("Your prompt is too long.", "prompt", "string_above_max_length"),
        openai("Invalid request."),
        {"error": "The seed of all apples is in the core."},
        openai("You must be at least n years old; invalid birthday."),
        openai("image-size2 is invalid, as are seeds."),
        openai("The model must be one of a, b.", "model"),
        pydantic("prompt", "Field required"),
        {"detail": "not now", "input": {"seed": 42, "text": "Unknown parameter: 'seed'"}},
        "",
        "<html>400 Bad Request</html>",
    ],
)
def test_error_about_nothing_optional_teaches_nothing(answer: Any) -> None:
    assert learn(answer) == NOTHING


def test_odd_values_do_not_pile_up() -> None:
    learned = NOTHING
    for seed in range(200):
        body = BODY | {"seed": seed}
        learned = learned.learn(ErrorText.read(400, openai("bad", "seed")), body, None)
    assert len(learned.wrong) == 50
    assert "seed" not in learned.fields(BODY | {"seed": 199}, None)


# --- sizes --------------------------------------------------------------------------------------

GPT_IMAGE = "Supported values are: '1024x1024', '1024x1536', '1536x1024', and 'auto'."
ARK = (
    "The parameter `size` specified in the request is not valid: image size must be at least"
    " 3686400 pixels."
)
COGVIEW = "长宽均需满足512px-2048px之间, 需被16整除, 并保证最大像素数不超过2^21px"
GLM = "长宽均需满足1024px-2048px之间，需为32的整数倍，最大像素数不超过2^22px"
# What was asked for, what was answered, and the fields that are sent instead.
FITTED: dict[str, tuple[Size, Any, Any]] = {
    "gpt-image-1": ((1024, 768), openai(f"Invalid value: '1024x768'. {GPT_IMAGE}"), "1536x1024"),
    "gpt-image-1, portrait": ((600, 900), openai(GPT_IMAGE, "size", "invalid_value"), "1024x1536"),
    "gpt-image-1, square": ((512, 512), openai(GPT_IMAGE, "size", "invalid_value"), "1024x1024"),
    "dall-e-2": ((300, 300),
        openai("'300x300' is not one of ['256x256', '512x512', '1024x1024'] - 'size'"), "256x256"),
    "one allowed size": ((300, 200), pydantic("size", "Input should be '512x512'",
        ctx={"expected": "'512x512'"}), "512x512"),
    "gpt-image-2, multiple": ((1792, 936),
        openai("Invalid size '1792x936'. Width and height must both be divisible by 16."),
        "1792x944"),
    "gpt-image-2, pixel budget": ((512, 512),
        openai("Invalid size '512x512'. Requested resolution is below the current minimum pixel"
        " budget."), "736x736"),
    "gpt-image-2, pixel budget with its number": ((512, 512),
        openai("Invalid size: below the minimum pixel budget of 655,360 pixels."), "816x816"),
    "gpt-image-2, shape": ((2048, 512),
        openai("Invalid size. The ratio of the longer edge to the shorter edge must be at most"
        " 3:1."), "1776x592"),
    "a range of shapes": ((100, 3000), {"message": "size 不合法，宽高比取值范围：[1/16, 16]"},
        "137x2192"),
    "gpt-image-2, edge": ((4096, 2048),
        openai("Invalid size: The longest edge must be less than or equal to 3840"), "3840x1920"),
    "Ark": ((1024, 768), openai(ARK, code="InvalidParameter"), "2224x1664"),
    "Ark, an unknown size": ((700, 700),
        openai("the specified size is not supported for model doubao-seedream-4-5", "size"), None),
    "xAI": ((1920, 1080), {"code": "400", "error": "Argument not supported: size"},
        {"aspect_ratio": "16:9"}),
    "Gemini": ((768, 1024), {"error": {"code": 400,
        "message": 'Unknown name "size": Cannot find field.'}}, {"aspect_ratio": "3:4"}),
    "CogView": ((1000, 300), {"error": {"message": f"size 参数错误：{COGVIEW}"}}, "1712x512"),
    "CogView, large": ((4000, 4000), {"error": {"message": f"size 无效，{COGVIEW}"}}, "1440x1440"),
    "glm-image": ((700, 500), {"message": f"图片尺寸不合法：{GLM}"}, "1440x1024"),
    "Diffusers": ((1000, 700),
        {"detail": "`height` and `width` have to be divisible by 16 but are 700 and 1000."},
        "1008x704"),
    "FastAPI, ensure": ((4096, 2048),
        {"detail": "size: ensure this value is less than or equal to 2048"}, "2048x1024"),
    "FastAPI, strictly": ((4096, 2048), pydantic("size", "width must be less than 2049"),
        "2048x1024"),
    "SiliconFlow": ((640, 480), {"code": 20015, "message": "image_size is required", "data": None},
        {"image_size": "640x480"}),
    "Together": ((640, 480), openai("Unrecognized key 'size'. Use 'width' and 'height' instead."),
        {"width": 640, "height": 480}),
    "width and height are missing": ((640, 480), {"detail": [{"loc": ["body", name],
        "msg": "Field required"} for name in ("height", "width")]}, {"width": 640, "height": 480}),
    "ratios": ((512, 512),
        openai("size is not supported. Use aspect_ratio, one of 1:1, 16:9 or 9:16"),
        {"aspect_ratio": "1:1"}),
    "a range": ((3000, 300), openai("width must be between 512 and 1536"), "1536x512"),
    "a range of sizes": ((300, 200), openai("size must be from 512x512 to 2048x2048"), "768x512"),
    "a range of pixels": ((2000, 1000),
        openai("total pixels of a size must be between 262,144 and 1,048,576"), "1440x720"),
    "in brackets": ((100, 100), openai("height must be in [256, 1024]"), "256x256"),
    "a greatest size": ((2048, 1024), openai("The maximum size is 1024x1024"), "1024x512"),
    "a least side": ((400, 200), openai("Minimum dimension is 256 pixels"), "512x256"),
    "an image of megapixels": ((2000, 2000),
        openai("Requested image exceeds the limit of 1 megapixel"), "992x992"),
    "megapixels": ((2000, 2000), openai("size exceeds the maximum of 1 megapixel"), "992x992"),
    "dashscope": ((640, 480), {"code": "InvalidParameter",
        "message": "size must be in 1024*1024, 720*1280, 1280*720, allowed"}, "1280x720"),
    "too large": ((1024, 1024), openai("The requested image size is too large."), "720x720"),
    "in Chinese, a list": ((640, 640), {"message": "size 不支持，仅支持 1024x1024、768x1344"},
        "1024x1024"),
    "in Chinese, a limit": ((3000, 1500), {"message": "图片宽高不能超过2048像素"}, "2048x1024"),
    "a size and an id": ((640, 480),
        openai("size 640x480 is not allowed (request id: 20260101123456789)"), None),
    "a list of shapes is no limit": ((900, 100),
        openai("size is invalid: the ratio must be one of 1:1, 1:2, 2:1, 20:9"), None),
    "an aspect ratio": ((900, 100), openai("The aspect ratio is out of range for this tier"), None),
    "Stability": ((1000, 700), {"errors": ["height: must be a multiple of 64"],
        "name": "bad_request"}, "1024x704"),
    "Stability, SDXL": ((1024, 768), {"name": "invalid_sdxl_v1_dimensions",
        "message": "the allowed dimensions are 1024x1024, 1152x896, 1344x768"}, "1152x896"),
    "Qwen": ((1024, 768), {"code": "InvalidParameter", "message": "size must be in ['1664*928',"
        "'1472*1140','1328*1328']"}, "1472x1140"),
    "Cloudflare": ((4096, 2048), {"errors": [{"message": "AiError: '/width' must be <= 2048",
        "code": 5006}]}, "2048x1024"),
    "Hugging Face": ((2048, 1024),
        {"error": ["Error in `parameters.width`: ensure this value is less than or equal to 1024"]},
        "1024x512"),
    "LiteLLM": ((1024, 768),
        openai(f"litellm.BadRequestError: Invalid value: '1024x768'. {GPT_IMAGE}"), "1536x1024"),
    "in Chinese, pixels": ((1024, 768), {"message": "图片总像素不能小于3686400"}, "2224x1664"),
}  # fmt: skip


def size_fields(learned: Learned, size: Size) -> dict[str, Any]:
    return learned.fields({}, size)


@pytest.mark.parametrize("vendor", FITTED)
def test_size_is_fitted(vendor: str) -> None:
    size, answer, expected = FITTED[vendor]
    learned = learn(answer, size)
    fields = {"size": expected} if isinstance(expected, str) else expected or {}
    assert size_fields(learned, size) == fields
    assert set(BODY) <= set(learned.fields(BODY, size))
    assert Learned.from_json(json.loads(json.dumps(learned.to_json()))) == learned


def test_wrong_size_is_left_out_alone() -> None:
    learned = learn(openai("the specified size is not supported", "size"), (700, 700))
    assert size_fields(learned, (1024, 1024)) == {"size": "1024x1024"}


def test_pixels_are_doubled_twice_then_the_size_is_left_out() -> None:
    answer = openai("Requested resolution is below the current minimum pixel budget.")
    learned, sent = NOTHING, []
    for next_size in ("736x736", "1056x1056", "600x600"):
        learned = learn(answer, (512, 512), learned)
        sent.append(size_fields(learned, (512, 512)).get("size"))
        assert size_fields(learned, (600, 600)) == {"size": next_size}, "a guess that helped serves"
    assert sent == ["736x736", "1056x1056", None]


def test_limits_of_several_answers_add_up() -> None:
    learned = NOTHING
    for message in (
        "Width and height must both be divisible by 16.",
        "The longest edge must be less than or equal to 3840",
        "size must have at least 655360 pixels",
    ):
        learned = learn(openai(message), (4000, 100), learned)
    assert learned.sizes == SizeRule(multiple=16, most_side=3840, least_pixels=655360)
    assert learned.sizes.fit((4000, 100)) == (3840, 176)
    assert learned.sizes.fit((3, 2)) == (992, 672)


def test_listed_values_are_sent_in_the_field_they_name() -> None:
    answer = openai("image_size must be one of 512x512, 768x1024")
    learned = learn(answer, (300, 300))
    assert size_fields(learned, (300, 300)) == {"size": "512x512"}
    learned = learn(answer, (300, 300), learned)
    assert size_fields(learned, (300, 300)) == {"image_size": "512x512"}


def test_rejected_shape_becomes_one_that_is_listed_or_none() -> None:
    for field in ("aspect_ratio", "image_config"):
        learned = Learned(size_field=field)
        listing = learn(openai("aspect_ratio must be one of 1:1, 4:3"), (1920, 1080), learned)
        shape = {"aspect_ratio": "4:3"}
        expected = shape if field == "aspect_ratio" else {field: shape}
        assert size_fields(listing, (1920, 1080)) == expected
        unknown = learn(openai(f"Unknown parameter: '{field}'."), (1920, 1080), learned)
        assert size_fields(unknown, (1920, 1080)) == {}


@pytest.mark.parametrize(
    "text",
    [
        "aspect_ratio: unknown variant `20:9`, expected one of `1:1`, `16:9`, `auto`",
        "aspect_ratio must be between 1:2 and 2:1",
        "aspect_ratio 必须介于 1:2 到 2:1",
    ],
)
def test_shape_is_learned_neither_from_itself_nor_from_a_range(text: str) -> None:
    learned = learn(openai(text), (2000, 900), Learned(size_field="aspect_ratio"))
    for size, ratio in ((1000, 1000), "1:1"), ((1920, 1080), "16:9"):
        assert size_fields(learned, size) == {"aspect_ratio": ratio}
    assert size_fields(learned, (2000, 900))["aspect_ratio"] in ("16:9", "2:1")


def test_usual_shapes_of_a_chat_model_are_its_own() -> None:
    learned = Learned(size_field="image_config")
    assert size_fields(learned, (2100, 900)) == {"image_config": {"aspect_ratio": "21:9"}}


def test_lessons_are_described_without_values_of_clients() -> None:
    learned = replace(learn(DROPPED["OpenAI"][0]), sizes=SizeRule(multiple=16), wrong=("style=x",))
    assert learned.describe() == {"dropped": ("seed",), "multiple": 16, "wrong": ["style"]}
    assert NOTHING.describe() == {}


# --- which size is nearest ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        *(((1024, 1024), "1:1"), ((1024, 768), "4:3"), ((1920, 1080), "16:9")),
        *(((1, 4096), "9:20"), ((2048, 1000), "2:1")),
    ],
)
def test_nearest_ratio_is_by_shape(size: Size, ratio: str) -> None:
    assert SizeRule().nearest_ratio(size, ASPECT_RATIOS) == ratio


@pytest.mark.parametrize(
    ("rule", "size", "fitted"),
    [
        (SizeRule(), (641, 479), (641, 479)),
        (SizeRule(sizes=((256, 256), (1024, 1024), (1024, 512))), (500, 500), (256, 256)),
        (SizeRule(multiple=64), (1, 1), (64, 64)),
        (SizeRule(least_side=512, most_side=2048), (4096, 1), (2048, 512)),
        (SizeRule(multiple=16, most_pixels=2**21, most_side=2048), (3000, 2000), (1760, 1168)),
    ],
)
def test_nearest_size_is_by_shape_then_by_area(rule: SizeRule, size: Size, fitted: Size) -> None:
    assert rule.fit(size) == fitted


SIDES = st.integers(1, 4096)


@unhurried
@given(SIDES, SIDES, st.sampled_from([1, 8, 16, 32]))
def test_fitted_size_is_always_allowed(width: int, height: int, multiple: int) -> None:
    rule = SizeRule(
        multiple=multiple, least_side=256, most_side=2048, most_pixels=2**22, most_ratio=3
    )
    found = rule.fit((width, height))
    assert all(256 <= side <= 2048 and side % multiple == 0 for side in found)
    assert max(found) <= 3 * min(found)


# --- any text -----------------------------------------------------------------------------------

PIECES = st.sampled_from((
    "size", " 'seed' ", "width", "must be", " at least ", "between ", " and ", "16", "1024x1",
    "99999x99999", "0:0", "1:1", "2^99", "2^", ",", ".", "9" * 30, " megapixels", "instead",
    "divisible by ", "unknown ", "too small", "too large", "最大", "不支持", "image_size", "self ",
    "must be set to ",
))  # fmt: skip


@unhurried
@given(st.lists(PIECES, max_size=20).map("".join) | st.text(max_size=60), SIDES, SIDES)
def test_any_text_teaches_something_that_can_be_sent(text: str, width: int, height: int) -> None:
    learned, size = NOTHING, (width, height)
    for _ in range(4):
        learned = learn(openai(text), size, learned)
        assert learned.fields(BODY, size)["prompt"] == "a fox"
    assert Learned.from_json(json.loads(json.dumps(learned.to_json()))) == learned
