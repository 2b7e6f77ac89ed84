"""Settings of the servers that are called: backends, LLM, image host, Pollinations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from settings import parsers as v
from settings.buckets import ObjectSettings, read_objects
from settings.extras import check_extra
from settings.reader import Reader

PROMPTS = Path(__file__).resolve().parent.parent / "prompts"
PLACEHOLDER = "{ORIGINAL_PROMPT}"
_TEMPLATES = {"LLM_OPTIMIZATION_TEMPLATE": "optimize.txt", "DE_NSFW_TEMPLATE": "safety.txt"}

HOSTING_PROVIDERS = ("smms", "picgo", "cloudflare_imgbed", "s3")
SEE_UPLOAD_URL = "https://s.ee/api/v1/file/upload"
POLLINATIONS_URL = "https://gen.pollinations.ai/image"
POLLINATIONS_LEGACY_URL = "https://image.pollinations.ai/prompt"

# URLs are left out of every repr: they may hold a password, or a key in the query.


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One OpenAI-compatible image backend; weight 0 drains it."""

    url: str = field(repr=False)
    weight: float = 1.0
    token: str | None = field(default=None, repr=False)
    models: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    def extra(self, model: str | None) -> dict[str, Any]:
        """Return the fields that replace those of a request for `model`; None removes one.

        They may name another model, whose own fields then count too.
        """
        fields = {**self.params.get("*", {})}
        for name in (model, fields.get("model")):
            fields |= self.params.get(name, {}) if name else {}
        return fields


@dataclass(frozen=True, slots=True)
class LlmSettings:
    """A chat-completions API, and a template for each use of it, or None where it is off."""

    url: str = field(repr=False)
    model: str
    token: str | None = field(repr=False)
    optimize_template: str | None
    safety_template: str | None
    safety_attempts: int


@dataclass(frozen=True, slots=True)
class HostingSettings:
    """An image host: `provider` is one of HOSTING_PROVIDERS, `url` accepts the uploads.

    For `s3`, `objects` is the bucket, and the names of pictures are appended to `public_url`.
    """

    provider: str
    url: str = field(repr=False)
    key: str | None = field(repr=False)
    auth_code: str | None = field(repr=False)
    public_url: str = ""
    objects: ObjectSettings | None = None

    def secrets(self) -> set[str | None]:
        return {self.key, self.auth_code, *(self.objects.secrets() if self.objects else ())}


@dataclass(frozen=True, slots=True)
class PollinationsSettings:
    """The fallback: `/{prompt}` is appended to `url`."""

    url: str = field(repr=False)
    token: str | None = field(repr=False)
    model: str | None


def read_backends(reader: Reader) -> tuple[BackendSettings, ...]:
    reader.require("BACKEND_API_URLS", "write one or more URLs, separated by commas")
    urls: tuple[str, ...] = reader.get("BACKEND_API_URLS", v.base_urls, ())
    weights = reader.per_backend("BACKEND_WEIGHTS", urls, v.weight)
    tokens = reader.per_backend("TOKEN_MAP", urls, v.token)
    models = reader.per_backend("MODEL_MAP", urls, v.model_names)
    params = reader.per_backend("BACKEND_PARAMS", urls, v.parameters)
    token = reader.get("AUTH_TOKEN", v.header_value, None)
    backends = tuple(
        BackendSettings(
            url,
            weights.get(url, 1.0),
            tokens.get(url, token),
            models.get(url, {}),
            params.get(url, {}),
        )
        for url in urls
    )
    if backends and not any(backend.weight for backend in backends):
        reader.fault("BACKEND_WEIGHTS", "drains every backend; leave at least one above 0")
    return backends


def read_models(reader: Reader, backends: tuple[BackendSettings, ...]) -> tuple[str, ...]:
    """Return the models that clients are offered."""
    mapped = tuple(dict.fromkeys(name for backend in backends for name in backend.models))
    return reader.get("MODELS", v.models, mapped)


def read_llm(reader: Reader) -> LlmSettings | None:
    optimizes = reader.get("LLM_OPTIMIZATION_ENABLED", v.boolean, False)
    makes_safe = reader.get("DE_NSFW_ENABLED", v.boolean, False)
    attempts = reader.get("DE_NSFW_MAX_ATTEMPTS", v.integer(1, 20), 2)
    token = reader.get("LLM_OPTIMIZATION_TOKEN", v.header_value, None)
    model = reader.get("LLM_OPTIMIZATION_MODEL", str, "gpt-4.1-mini")
    url = reader.get("LLM_OPTIMIZATION_API_URL", v.base_url, "")
    for name in _TEMPLATES:
        reader.first_set(name, f"{name}_FILE")  # known even where they are not used
    if not optimizes and not makes_safe:
        return None
    switch = "LLM_OPTIMIZATION_ENABLED" if optimizes else "DE_NSFW_ENABLED"
    reader.require("LLM_OPTIMIZATION_API_URL", f"{switch} needs it: write https://host/v1")

    def template(name: str) -> str:
        return reader.template(name, PROMPTS / _TEMPLATES[name], PLACEHOLDER)

    return LlmSettings(
        url=url,
        model=model,
        token=token,
        optimize_template=template("LLM_OPTIMIZATION_TEMPLATE") if optimizes else None,
        safety_template=template("DE_NSFW_TEMPLATE") if makes_safe else None,
        safety_attempts=attempts,
    )


def read_hosting(reader: Reader) -> HostingSettings | None:
    enabled = reader.get("IMAGE_HOSTING_ENABLED", v.boolean, False)
    provider = reader.get("IMAGE_HOSTING_PROVIDER", _hosting_provider, "")
    key = reader.get("IMAGE_HOSTING_KEY", v.header_value, None)
    code = reader.get("IMAGE_HOSTING_AUTH_CODE", str, None)
    public_url = reader.get("IMAGE_HOSTING_PUBLIC_URL", v.url_without_query, "")
    if provider == "s3":
        return _read_s3(reader, public_url) if enabled else None
    url = reader.get("IMAGE_HOSTING_URL", v.base_url, SEE_UPLOAD_URL if provider == "smms" else "")
    if not enabled:
        return None
    reader.require("IMAGE_HOSTING_PROVIDER", f"write one of {', '.join(HOSTING_PROVIDERS)}")
    if provider in ("smms", "picgo"):
        reader.require("IMAGE_HOSTING_KEY", f"{provider} needs it: write its API key")
    if provider in ("picgo", "cloudflare_imgbed"):
        reader.require("IMAGE_HOSTING_URL", f"{provider} needs it: write https://host")
    return HostingSettings(provider, url, key, code)


def _hosting_provider(text: str) -> str:
    provider = v.one_of(*HOSTING_PROVIDERS)(text)
    if provider == "s3":
        check_extra("cluster")
    return provider


def _read_s3(reader: Reader, public_url: str) -> HostingSettings:
    reader.require("IMAGE_HOSTING_URL", "s3 needs it: write s3://bucket/prefix")
    reader.require("IMAGE_HOSTING_PUBLIC_URL", "s3 needs it: write https://images.example.com")
    objects = read_objects(reader, "IMAGE_HOSTING_URL")
    if objects and not objects.url.startswith("s3://"):
        reader.fault("IMAGE_HOSTING_URL", "is not a bucket of the provider s3; write s3://…")
    return HostingSettings("s3", "", None, None, public_url, objects)


def read_pollinations(reader: Reader) -> PollinationsSettings | None:
    enabled = reader.get("POLLINATIONS_ENABLED", v.boolean, True)
    token = reader.get("POLLINATIONS_TOKEN", v.header_value, None)
    model = reader.get("POLLINATIONS_MODEL", str, None)
    default = POLLINATIONS_URL if token else POLLINATIONS_LEGACY_URL
    url = reader.get("POLLINATIONS_URL", v.base_url, default)
    return PollinationsSettings(url, token, model) if enabled else None
