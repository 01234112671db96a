"""A real Envoy is one of the demo's own sidecars, beside the cart: our proxies call it and are called by it, over mTLS,
and the demo's whole scenario holds with it."""

import os
import subprocess

from _mesh import ENVOY, TULLE, check, say

done = subprocess.run(
    [TULLE, "demo", "--check", "--net", "loopback", "--envoy", f"cart-1={ENVOY}"],
    capture_output=True, text=True, timeout=240, env={**os.environ, "NO_COLOR": "1"},
)
for line in (done.stdout + done.stderr).splitlines():
    say(line)
steps = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith(("ok ", "FAIL"))}
check("is Envoy 1." in steps.get("envoy", ""), "the cart's proxy is a real Envoy")
check("served" in steps["envoy"] and "called payments" in steps["envoy"], "it is called and calls over mTLS")
check(done.returncode == 0 and all(line.startswith("ok") for line in steps.values()), "every step of the demo holds")
