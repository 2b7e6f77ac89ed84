-- One line that a program can read, in microseconds and bytes.
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    "RESULT {\"requests\": %d, \"microseconds\": %d, \"bytes\": %d, \"p50\": %.0f, \"p99\": %.0f,"
      .. " \"max\": %.0f, \"bad\": %d}\n",
    summary.requests, summary.duration, summary.bytes,
    latency:percentile(50), latency:percentile(99), latency.max,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
