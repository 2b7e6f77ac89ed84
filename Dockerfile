# Every requirement has a wheel for this Python: nothing is compiled here.
FROM python:3.13-slim
# Written by .ci/release, together with the version that /status shows.
LABEL org.opencontainers.image.title="Prompt Image Proxy" \
      org.opencontainers.image.version="1.0.0+dev"

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1
WORKDIR /app
# Optional packages: docker build --build-arg EXTRAS="cluster metrics"
ARG EXTRAS=""
COPY requirements*.txt constraints.txt ./
# A number needs no account; Debian has a user `proxy` of its own.
RUN for extra in "" $EXTRAS; do \
        pip install -c constraints.txt -r "requirements${extra:+-$extra}.txt" || exit; \
    done \
    && install -d -m 700 -o 10001 -g 10001 /cache
COPY *.py ./
COPY commands commands
COPY dialect dialect
COPY drawing drawing
COPY images images
COPY metrics metrics
COPY prompts prompts
COPY settings settings
COPY storage storage
COPY upstream upstream
COPY web web

USER 10001:10001
ENV HOST=0.0.0.0 PORT=8080 CACHE_DIR=/cache
VOLUME /cache
EXPOSE 8080
# /status answers in a millisecond, even while all drawing threads are busy, and with a 503 while the
# database is down, which no restart cures. urllib would ask the proxy in HTTP_PROXY for it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD \
    ["python", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/status'); exit(c.getresponse().status not in (200, 503))"]
CMD ["gunicorn"]
