vcl 4.1;

# Varnish in front of Prompt Image Proxy: a cache of pictures in memory, as nginx.conf has one on
# disk. Varnish speaks no TLS: put Caddy, HAProxy or Apache before it, and set PUBLIC_URL in .env.
# Copy this file to /etc/varnish/prompt-image-proxy.vcl, run `systemctl edit varnish`, and write:
#
#     [Service]
#     ExecStart=
#     ExecStart=/usr/sbin/varnishd -j unix,user=vcache -F -a 127.0.0.1:6081 \
#         -f /etc/varnish/prompt-image-proxy.vcl -s malloc,256m \
#         -p http_req_hdr_len=64k -p http_req_size=96k \
#         -p workspace_client=256k -p workspace_backend=256k
#
# Without the parameters a request line of more than 8 KB is refused; a description of 4,000
# characters is up to 48 KB. Varnish's log is in memory, and holds URLs with their access keys:
# do not write it to disk with varnishncsa unless its format leaves out the query (%U, without %q).
#
# tests/test_fronts.py tests this file.
# Edition 4ad1c55f (`check` says if the installed file has another: docs/upgrading.md)

import std;

backend app {
    # CHANGE with HOST and PORT
    .host = "127.0.0.1";
    .port = "8080";
    .connect_timeout = 5s;
    # CHANGE both with GENERATION_DEADLINE (180 s): they have to be longer.
    .first_byte_timeout = 210s;
    .between_bytes_timeout = 210s;
}

sub vcl_recv {
    # Host is passed on, and "https" comes from the server before Varnish.
    unset req.http.X-Forwarded-Host;
    if (req.http.X-Forwarded-Proto != "https") {
        unset req.http.X-Forwarded-Proto;
    }
    # The app draws a picture once however many requests wait for it; here, uncacheable answers
    # would be fetched one by one.
    set req.hash_ignore_busy = true;
    # A picture that is no longer fresh is shown only after the app did not answer: see vcl_deliver.
    if (req.restarts == 0) {
        unset req.http.X-App-Is-Down;
        set req.grace = 0s;
    }
    # Not HEAD: Varnish would fetch by GET, which draws. And a Bearer token is no part of the hash.
    if (req.method == "GET" && req.url ~ "^/prompt/" && !req.http.Authorization) {
        unset req.http.Cookie;
        return (hash);
    }
    return (pass);
}

sub vcl_backend_fetch {
    # A 304 would renew an answer whose URL expires (`exp`, in any spelling: %65 is e), and not what
    # its headers say about the rest of that time.
    if (bereq.url ~ "(?i)exp=|%65|%78|%70") {
        unset bereq.http.If-None-Match;
        unset bereq.http.If-Modified-Since;
    }
}

sub vcl_backend_response {
    # Only what the app releases (NGINX_CACHE_SECONDS), and for that long.
    if (bereq.uncacheable || !beresp.http.X-Accel-Expires) {
        set beresp.uncacheable = true;
        set beresp.ttl = 0s;
        set beresp.grace = 0s;
        set beresp.keep = 0s;
    } else {
        set beresp.ttl = std.duration(beresp.http.X-Accel-Expires + "s", 0s);
        set beresp.grace = 1h;
        set beresp.keep = 1h;
        if (bereq.url ~ "(?i)exp=|%65|%78|%70") {
            set beresp.grace = 0s;
        }
    }
    unset beresp.http.X-Accel-Expires;
    return (deliver);
}

# Varnish's own error while the app is down: a card for <img>, whose Accept begins with image/, and
# JSON for others, as the app's own.
sub vcl_backend_error {
    set beresp.ttl = 0s;
    set beresp.grace = 0s;
    set beresp.http.X-App-Is-Down = "1";
    set beresp.http.Cache-Control = "no-store";
    set beresp.http.Access-Control-Allow-Origin = "*";
    set beresp.http.Cross-Origin-Resource-Policy = "cross-origin";
    set beresp.http.Vary = "Accept, Accept-Language";
    set beresp.http.Retry-After = "5";
    set beresp.http.X-Content-Type-Options = "nosniff";
    if (bereq.http.Accept !~ "^image/") {
        set beresp.http.Content-Type = "application/problem+json";
        synthetic("""{"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "The service is not available at the moment.", "error": {"message": "The service is not available at the moment.", "type": "server_error", "param": null, "code": null}}""");
        return (deliver);
    }
    set beresp.http.Content-Type = "image/png";
    if (bereq.http.Accept-Language ~ "^zh") {
        set beresp.body = std.blobread("/opt/prompt-image-proxy/web/cards/later.zh.png");
    } else {
        set beresp.body = std.blobread("/opt/prompt-image-proxy/web/cards/later.en.png");
    }
    return (deliver);
}

sub vcl_deliver {
    # Only while the app does not answer: with its own 502 or 503, a deleted picture would be shown
    # for as long as backends fail.
    if (resp.http.X-App-Is-Down && req.restarts == 0) {
        set req.grace = 1h;
        return (restart);
    }
    unset resp.http.X-App-Is-Down;
    unset resp.http.X-Varnish;
    unset resp.http.Via;
}
