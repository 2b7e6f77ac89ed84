"""The table of settings: a field for each, in the order in which they are documented.

The text below a field is Markdown, with links as seen from docs/. After a change, run
`python -m settings`, which writes .env.example and the tables in docs/settings.md.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settings import maps
from settings import parsers as p
from settings.maps import MAX_PER_DAY, KeySettings, named_keys
from settings.proxies import Proxy
from settings.setting import by_backend, rows, setting

# Threads of each worker that only serve cached pictures, /status and refusals, so that a cache
# hit never waits for a drawing.
THREADS_KEPT_FREE = 16
_TEN_YEARS = 315_360_000


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # unlike cpu_count it knows a container's limit
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Every setting, parsed. Times are seconds, sizes bytes."""

    backend_api_urls: tuple[str, ...] = setting(p.listed(p.base_url), (), heading="Required")
    """The [image backends](backends.md), OpenAI-compatible, such as `https://api.openai.com/v1`;
    several are separated by commas."""
    access_key: str | None = setting(str, None, is_secret=True, names=("PROXY_ACCESS_KEY",))
    """The access key that clients send as `?key=` or as a Bearer token: a long random string, for
    example from `openssl rand -hex 24`. Not required with `ACCESS_KEYS`."""

    access_keys: tuple[KeySettings, ...] = setting(named_keys, (), is_secret=True, heading="Access")
    """Further access keys by name, each with an optional [limit and last day](#keys-and-limits):
    `{"blog": {"key": "long random string", "per_day": 50, "expires": "2027-01-31"}}`."""
    drawings_per_day: int | None = setting(p.integer(0, MAX_PER_DAY), None, shown="no limit")
    """Drawings per UTC day for `PROXY_ACCESS_KEY` and the URLs signed with it together."""
    admin_token: str | None = setting(str, None, is_secret=True, shown="admin functions are off")
    """Opens the gallery, `GET /cache` and `POST /cache/delete` (as the header `X-Admin-Token`),
    and `GET /metrics` (as a Bearer token)."""
    signing_keys: tuple[str, ...] = setting(
        p.listed(str),
        (),
        is_secret=True,
        names=("SIGNING_KEY",),
        shown="derived from `PROXY_ACCESS_KEY`",
    )
    """One or more keys for [signed URLs](signing.md), separated by commas: the first signs, all
    are accepted. Without this and `PROXY_ACCESS_KEY`, signing is off."""
    public_url: str | None = setting(p.url_without_query, None, shown="the URL of the request")
    """The address that readers use, such as `https://pics.example.org`, without a query. Signed
    URLs begin with it."""
    error_images: bool = setting(p.boolean, "true")
    """Whether a client that asks for a picture gets an error as a small card instead of JSON."""

    auth_token: str | None = setting(p.header_value, None, is_secret=True, heading="Backends")
    """The Bearer token for every backend that `TOKEN_MAP` does not name."""
    token_map: Mapping[str, str] = by_backend(maps.token, is_secret=True)
    """Tokens by backend: `{"https://api.openai.com/v1": "sk-…"}`."""
    backend_weights: Mapping[str, float] = by_backend(
        maps.number(0, 1_000_000, float), shown="1 each"
    )
    """How often each backend is chosen: `{"https://api.openai.com/v1": 2.5}`. 0 drains one."""
    model_map: Mapping[str, Mapping[str, str]] = by_backend(maps.model_names)
    """Model names by backend: `{"https://api.x.ai/v1": {"gpt-image-2": "grok-imagine-image"}}`."""
    models: tuple[str, ...] = setting(p.listed(p.model), (), shown="the names in `MODEL_MAP`")
    """The models that [`/v1/models`](api.md#get-v1models) lists for clients to choose from,
    separated by commas: `gpt-image-2,flux`. Others can be requested too."""
    backend_params: Mapping[str, Mapping[str, Mapping[str, Any]]] = by_backend(maps.parameters)
    """[Extra parameters](backends.md#extra-parameters) by backend and model, `*` for every model;
    `null` removes one: `{"https://api.openai.com/v1": {"*": {"moderation": "low"}}}`."""
    backend_headers: Mapping[str, Mapping[str, str]] = by_backend(maps.headers, is_secret=True)
    """[More headers](backends.md#headers) by backend, for a gateway in front of it:
    `{"https://gateway.example.org/v1": {"CF-Access-Client-Id": "…"}}`."""
    backend_concurrency: Mapping[str, int] = by_backend(maps.number(1, 1000), shown="no limit")
    """How many drawings a backend has [under way at once](backends.md#drawings-at-once), over all
    workers and machines: `{"http://127.0.0.1:8000": 1}`. Others wait, or another backend draws
    them."""
    blocked_retry_attempts: int = setting(p.integer(0, 100), "2")
    """How many backends have to refuse a prompt before it is rewritten or given up on. 0 means
    1."""

    https_proxy: Proxy | None = setting(
        Proxy.parse, None, names=("https_proxy", "HTTPS_PROXY"), heading="Network"
    )
    """The proxy for `https://` URLs: `http://user:password@host:3128`, or `socks5://…` or
    `socks5h://…`, which need `requirements-socks.txt`."""
    http_proxy: Proxy | None = setting(Proxy.parse, None, names=("http_proxy", "HTTP_PROXY"))
    """The proxy for `http://` URLs."""
    all_proxy: Proxy | None = setting(Proxy.parse, None, names=("all_proxy", "ALL_PROXY"))
    """The proxy for both, where the two above are not set."""
    no_proxy: str = setting(str, "", names=("no_proxy", "NO_PROXY"))
    """Destinations reached without a proxy, separated by commas: host names with their subdomains,
    `host:port`, addresses, networks, or `*`."""
    backend_proxies: Mapping[str, Proxy | None] = by_backend(maps.proxy_or_none, is_secret=True)
    """A proxy for one backend, or `null` for a direct connection, which takes precedence over the
    four above: `{"https://api.openai.com/v1": "http://host:3128"}`."""
    ca_bundle: Path | None = setting(
        p.certificates,
        None,
        names=("CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"),
        shown="`REQUESTS_CA_BUNDLE`, else `SSL_CERT_FILE`, else certifi's",
    )
    """A PEM file with the certificates of the authorities to trust, instead of certifi's."""
    picture_networks: tuple[p.IpNetwork, ...] = setting(p.listed(p.network), ())
    """Networks from which a backend's pictures may be fetched although they are not public,
    separated by commas: `192.168.1.0/24`."""

    host: str = setting(p.host, "127.0.0.1", heading="Server")
    """The address to listen on: `127.0.0.1` for this machine only, `0.0.0.0` for any network."""
    port: int = setting(p.integer(1, 65535), "8080")
    """The port to listen on."""
    workers: int = setting(p.integer(1, 256), usable_cores(), shown="the number of cores")
    """Worker processes."""
    threads: int = setting(p.integer(THREADS_KEPT_FREE + 1, 4096), "512")
    """Threads per worker; 16 of them never draw, so that cached pictures are always served."""
    drawings: int = setting(p.integer(1, 1024), "64")
    """Drawings at once per worker; further ones wait for their turn."""
    log_level: str = setting(p.one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO")
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`. `DEBUG` adds an access log."""

    cache_dir: Path = setting(p.absolute_path, "./image_file_cache", heading="Cache")
    """The folder for pictures and their index."""
    cache_max_bytes: int = setting(p.integer(0, 10**18 - 1), "10737418240", shown="10 GiB")
    """The size of all pictures together; the least recently used are deleted first. 0 means no
    limit; otherwise at least `MAX_IMAGE_BYTES`."""
    cache_control: str = setting(p.header_value, "public, max-age=31536000, immutable")
    """The `Cache-Control` header of pictures."""
    blocked_ttl: float = setting(p.seconds(0, _TEN_YEARS), "86400", shown="a day")
    """Seconds for which a prompt that every backend refused is not tried again."""
    nginx_cache_seconds: int = setting(p.integer(0, 31536000), "10")
    """Seconds for which nginx may serve a picture without asking the service (`X-Accel-Expires`).
    A deleted picture or a revoked key may be served for that long."""

    database_url: str | None = setting(
        p.database_url,
        None,
        is_secret=True,
        extra="cluster",
        shown="SQLite in `CACHE_DIR`",
        heading="Several machines",
    )
    """The PostgreSQL database that all machines share: `postgresql://user:password@host/database`,
    with special characters percent-encoded (`%40` for `@`)."""
    storage_url: str | None = setting(p.bucket_url, None, shown="the folder `CACHE_DIR`")
    """Where pictures are stored: `s3://bucket/prefix`, `gs://bucket/prefix` or
    `az://container/prefix`. `CACHE_DIR` then holds copies on this machine."""
    s3_endpoint_url: str | None = setting(p.url_without_query, None, shown="Amazon's")
    """The URL of an S3 server, such as `https://s3.example.com`."""
    s3_region: str | None = setting(p.header_value, None, shown="`us-east-1`")
    """The region of the bucket."""
    s3_access_key_id: str | None = setting(p.header_value, None, is_secret=True)
    """The ID of the access key for `s3://`."""
    s3_secret_access_key: str | None = setting(p.header_value, None, is_secret=True)
    """The access key itself."""

    picture_format: str = setting(
        p.one_of("original", "webp", "jpeg", "png"), "original", extra="formats", heading="Pictures"
    )
    """The format in which pictures are stored: `original` (as the backend made it), `webp`, `jpeg`
    or `png`."""
    picture_quality: int = setting(p.integer(1, 100), "90")
    """The quality of WebP and JPEG, from 1 to 100."""
    picture_max_bytes: int | None = setting(p.integer(1000, 2**31), None, extra="formats")
    """The largest picture that is stored, in bytes, at least 1000. A larger one is
    [made to fit](formats.md#a-limit-on-bytes): quality goes down first, then the size."""

    metrics: bool = setting(p.boolean, "false", extra="metrics", heading="Metrics")
    """Whether the service counts its work and answers [Prometheus](metrics.md) at `GET /metrics`,
    with `ADMIN_TOKEN`."""

    backend_timeout: float = setting(p.seconds(0.1), "120", heading="Limits")
    """Seconds for one call to a backend."""
    llm_timeout: float = setting(p.seconds(0.1), "30")
    """Seconds for one call to the LLM."""
    upload_timeout: float = setting(p.seconds(0.1), "30")
    """Seconds for one upload to the image host."""
    answer_within: float | None = setting(p.seconds(0.1), None)
    """Seconds after which a picture that is still being drawn is answered with a 503 and
    [a card that says so](#pictures-that-take-long), while the drawing goes on. Behind Cloudflare:
    90; for GitHub: 3."""
    generation_deadline: float = setting(p.seconds(0.1), "180")
    """Seconds for a whole drawing, [with every stage](deployment.md#sizing) but the upload."""
    max_image_bytes: int = setting(p.integer(1, 2**31), "33554432", shown="32 MiB")
    """The largest picture accepted from a backend."""
    max_prompt_length: int = setting(p.integer(1, 1_000_000), "4000")
    """The longest description, in characters."""

    image_hosting_enabled: bool = setting(p.boolean, "false", heading="Image hosting")
    """Whether pictures are uploaded, and clients redirected to them."""
    image_hosting_provider: str | None = setting(p.hosting_provider, None)
    """`smms` (needs a key), `picgo` (a key and a URL), `cloudflare_imgbed` (a URL) or `s3` (two
    URLs, the `S3_…` settings and `requirements-cluster.txt`)."""
    image_hosting_key: str | None = setting(p.header_value, None, is_secret=True)
    """The API key of `smms` or `picgo`."""
    image_hosting_url: str | None = setting(
        p.hosting_url, None, shown="none; for `smms` `https://s.ee/api/v1/file/upload`"
    )
    """The address of the host, such as `https://images.example.org`; for `s3` the bucket,
    `s3://bucket/prefix`."""
    image_hosting_public_url: str | None = setting(p.url_without_query, None)
    """For `s3`: the public URL of the bucket, such as `https://images.example.org`."""
    image_hosting_auth_code: str | None = setting(str, None, is_secret=True)
    """The authCode of `cloudflare_imgbed`, if it requires one."""

    llm_optimization_enabled: bool = setting(p.boolean, "false", heading="Prompts")
    """Whether an LLM improves every prompt before it is drawn."""
    llm_optimization_api_url: str | None = setting(p.base_url, None)
    """The LLM, also for `DE_NSFW_ENABLED`: a chat-completions API, OpenAI-compatible, such as
    `https://api.openai.com/v1`."""
    llm_optimization_token: str | None = setting(p.header_value, None, is_secret=True)
    """The Bearer token for the LLM."""
    llm_optimization_model: str = setting(str, "gpt-4.1-mini")
    """The LLM's model."""
    llm_params: Mapping[str, Any] = setting(maps.llm_parameters, {})
    """More fields for requests to the LLM, as a JSON object; `null` removes one:
    `{"enable_thinking": false, "temperature": null}`."""
    llm_optimization_template_file: str | None = setting(str, None, shown="`prompts/optimize.txt`")
    """A file with your own template, in which `{ORIGINAL_PROMPT}` stands for the prompt."""
    llm_optimization_template: str | None = setting(str, None)
    """Your own template on one line, with `\\n` for a line break. The file takes precedence."""
    de_nsfw_enabled: bool = setting(p.boolean, "false")
    """Whether the same LLM rewrites prompts that moderation refused."""
    de_nsfw_max_attempts: int = setting(p.integer(1, 20), "2")
    """The maximum number of rewrites of a prompt."""
    de_nsfw_template_file: str | None = setting(str, None, shown="`prompts/safety.txt`")
    """A file with your own template, in which `{ORIGINAL_PROMPT}` stands for the prompt."""
    de_nsfw_template: str | None = setting(str, None)
    """Your own template on one line, with `\\n` for a line break. The file takes precedence."""

    pollinations_enabled: bool = setting(p.boolean, "true", heading="Pollinations")
    """Whether Pollinations.ai draws when no backend does. While it is on, **prompts may be sent
    there**."""
    pollinations_url: str | None = setting(
        p.base_url,
        None,
        shown="`https://gen.pollinations.ai/image` with a token, else"
        " `https://image.pollinations.ai/prompt`",
    )
    """The URL to which `/{prompt}` is appended."""
    pollinations_token: str | None = setting(p.header_value, None, is_secret=True)
    """The key for gen.pollinations.ai; without one, the legacy service is used."""
    pollinations_model: str | None = setting(str, None, shown="Pollinations chooses")
    """The model to ask for."""


ROWS = rows(Table)
NAMES = {name for row in ROWS for name in row.all_names}
# Each can also be read from a file: NAME_FILE.
SECRETS = tuple(row.name for row in ROWS if row.is_secret)
