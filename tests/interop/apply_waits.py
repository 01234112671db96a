"""`tulle apply --wait` returns when the proxies have the change, says how long it took, and names who refuses or is gone
silent: with a store, one real Envoy and one proxy of ours."""

import os
import re
import signal

from _mesh import Control, Shop, Sidecar, check, say, step, until

shop = Shop()


def now():
    return shop.get()[1].get("x-step")


control = Control(store=True).start()
code, out, errors = control.tulle("apply", "-f", "-", text=shop.yaml())
check(code == 0 and "Service shop/catalog created" in out, f"an empty store takes a mesh {errors}")
control.agent("web-1.shop", "web")
control.agent("catalog-1.shop", "catalog")
catalog = Sidecar(control, "catalog-1.shop", shop.catalog, "unix", True, "envoy")
web = Sidecar(control, "web-1.shop", shop.web, "tls", True, "tulle")
until(lambda: shop.get()[0] == 200, "a request goes through", 20)
until(lambda: control.synced("web-1.shop", "catalog-1.shop"), "both acknowledged everything", 20)

slowest = 0.0
for number in range(1, 21):
    code, out, errors = control.tulle("apply", "-f", "-", "--wait", text=step(number))
    check(now() == str(number), f"what apply waited for is in force ({number})") if now() != str(number) else None
    match = re.search(r"is on (\d+) of (\d+) proxies \(p50 (\d+) ms, p99 (\d+) ms\)", out)
    if code != 0 or not match or match[1] != match[2]:
        check(False, f"apply --wait: exit {code} {out} {errors}")
    slowest = max(slowest, float(match[4]))
check(slowest < 1000, f"20 changes were in force when `apply --wait` returned; the slowest took {slowest:.0f} ms")

os.kill(web.process.pid, signal.SIGSTOP)
code, out, _ = control.tulle("apply", "-f", "-", "--wait=1s", text=step(100))
os.kill(web.process.pid, signal.SIGCONT)
check(code == 3 and "not on sidecar~127.77.0.1~web-1.shop" in out, f"a silent proxy is named, exit {code}")
say(out.strip().splitlines()[-1])
until(lambda: now() == "100", "it takes the change when it wakes", 10)

code, out, errors = control.tulle("apply", "-f", "-", text=step(1).replace("route:", "rouet:"))
check(code == 6 and "rouet" in errors, f"a misspelled field is refused with its place, exit {code}")
control.stop()
control.start()
until(lambda: control.synced("web-1.shop", "catalog-1.shop"), "both come back after a restart", 40)
check(now() == "100", "the store still says the same")
code, out, _ = control.tulle("delete", "vs", "catalog", "-n", "shop", "--wait")
check(code == 0 and now() is None, f"a deleted route is gone when `delete --wait` returns: {out.strip().splitlines()[-1]}")
