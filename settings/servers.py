"""Settings of the network and of the servers that are called."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from settings.parsers import HOSTING_PROVIDERS, printable_url, text_file
from settings.proxies import NetworkSettings, Origin, Proxy
from settings.setting import Reader
from settings.table import Table


@dataclass(frozen=True, slots=True)
class ObjectSettings:
    """A bucket and a prefix in it, as a URL; the rest is for S3 and compatible stores alone."""

    url: str
    endpoint_url: str | None = field(default=None, repr=False)
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)


def make_objects(name: str, url: str | None, table: Table, reader: Reader) -> ObjectSettings | None:
    """Return the bucket at `url`, the value of the variable `name`."""
    if not url:
        return None
    if url.startswith("s3://"):
        for credential in ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"):
            reader.require(credential, f"{name} needs it: write the access key for the bucket")
    return ObjectSettings(
        url,
        table.s3_endpoint_url,
        table.s3_region,
        table.s3_access_key_id,
        table.s3_secret_access_key,
    )


def make_network(table: Table, reader: Reader) -> NetworkSettings:
    proxies = {"http": table.http_proxy, "https": table.https_proxy, "all": table.all_proxy}
    own: dict[Origin, Proxy | None] = {}
    for url, proxy in table.backend_proxies.items():
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        origin = parts.scheme, host, parts.port or (443 if parts.scheme == "https" else 80)
        if own.setdefault(origin, proxy) != proxy:
            sentence = "has another proxy than a URL of the same server; write the same for both"
            reader.fault("BACKEND_PROXIES", f"{printable_url(url)!r} {sentence}")
    return NetworkSettings(
        ca_bundle=table.ca_bundle,
        proxies={scheme: proxy for scheme, proxy in proxies.items() if proxy},
        no_proxy=table.no_proxy,
        own_proxies=own,
        picture_networks=table.picture_networks,
    )


_PROMPTS = Path(__file__).resolve().parent.parent / "prompts"
PLACEHOLDER = "{ORIGINAL_PROMPT}"

SEE_UPLOAD_URL = "https://s.ee/api/v1/file/upload"
POLLINATIONS_URL = "https://gen.pollinations.ai/image"
POLLINATIONS_LEGACY_URL = "https://image.pollinations.ai/prompt"

# URLs are left out of every repr: they may hold a password, or a key in the query.


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One image backend; weight 0 drains it.

    `concurrency` is how many drawings it has under way at once; None means any number.
    """

    url: str = field(repr=False)
    weight: float = 1.0
    token: str | None = field(default=None, repr=False)
    models: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    concurrency: int | None = None

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
    """A chat-completions API, and a template for each use of it, or None where it is off.

    `params` are fields that replace those of a request; None removes one.
    """

    url: str = field(repr=False)
    model: str
    token: str | None = field(repr=False)
    optimize_template: str | None
    safety_template: str | None
    safety_attempts: int
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)


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


@dataclass(frozen=True, slots=True)
class PollinationsSettings:
    """The fallback: `/{prompt}` is appended to `url`."""

    url: str = field(repr=False)
    token: str | None = field(repr=False)
    model: str | None


def make_backends(table: Table, reader: Reader) -> tuple[BackendSettings, ...]:
    reader.require("BACKEND_API_URLS", "write one or more URLs, separated by commas")
    backends = tuple(
        BackendSettings(
            url,
            table.backend_weights.get(url, 1.0),
            table.token_map.get(url, table.auth_token),
            table.model_map.get(url, {}),
            table.backend_params.get(url, {}),
            table.backend_headers.get(url, {}),
            table.backend_concurrency.get(url),
        )
        for url in table.backend_api_urls
    )
    if backends and not any(backend.weight for backend in backends):
        reader.fault("BACKEND_WEIGHTS", "drains every backend; leave at least one above 0")
    return backends


def make_llm(table: Table, reader: Reader) -> LlmSettings | None:
    optimizes, makes_safe = table.llm_optimization_enabled, table.de_nsfw_enabled
    if not optimizes and not makes_safe:
        return None
    switch = "LLM_OPTIMIZATION_ENABLED" if optimizes else "DE_NSFW_ENABLED"
    reader.require("LLM_OPTIMIZATION_API_URL", f"{switch} needs it: write https://host/v1")
    optimize = _template("LLM_OPTIMIZATION_TEMPLATE", "optimize.txt", reader) if optimizes else None
    return LlmSettings(
        url=table.llm_optimization_api_url or "",
        model=table.llm_optimization_model,
        token=table.llm_optimization_token,
        optimize_template=optimize,
        safety_template=_template("DE_NSFW_TEMPLATE", "safety.txt", reader) if makes_safe else None,
        safety_attempts=table.de_nsfw_max_attempts,
        params=table.llm_params,
    )


def _template(name: str, default: str, reader: Reader) -> str:
    """Return a prompt template: from `NAME_FILE`, else from `NAME`, else the default file."""
    file, text = reader.values[f"{name}_FILE".lower()], reader.values[name.lower()]
    try:
        if file or not text:
            text = text_file(file or _PROMPTS / default)
        else:
            text = text.replace("\\n", "\n")
        if PLACEHOLDER not in text:
            raise ValueError(f"does not contain {PLACEHOLDER}; write it where the prompt belongs")
    except ValueError as error:
        reader.fault(f"{name}_FILE" if file else name, error)
    return text or ""


def make_hosting(table: Table, reader: Reader) -> HostingSettings | None:
    if not table.image_hosting_enabled:
        return None
    provider, url = table.image_hosting_provider or "", table.image_hosting_url or ""
    reader.require("IMAGE_HOSTING_PROVIDER", f"write one of {', '.join(HOSTING_PROVIDERS)}")
    for name, value in HOSTING_PROVIDERS.get(provider, {}).items():
        reader.require(f"IMAGE_HOSTING_{name}", f"{provider} needs it: write {value}")
    if url and (provider == "s3") != url.startswith("s3://"):
        advice = "write s3://bucket/prefix for s3, https://host for the others"
        reader.fault("IMAGE_HOSTING_URL", f"does not suit the provider; {advice}")
    if provider == "s3":
        objects = make_objects("IMAGE_HOSTING_URL", url, table, reader)
        public_url = table.image_hosting_public_url or ""
        return HostingSettings("s3", "", None, None, public_url, objects)
    if provider == "smms":
        url = url or SEE_UPLOAD_URL
    return HostingSettings(provider, url, table.image_hosting_key, table.image_hosting_auth_code)


def make_pollinations(table: Table) -> PollinationsSettings | None:
    if not table.pollinations_enabled:
        return None
    token = table.pollinations_token
    url = table.pollinations_url or (POLLINATIONS_URL if token else POLLINATIONS_LEGACY_URL)
    return PollinationsSettings(url, token, table.pollinations_model)
