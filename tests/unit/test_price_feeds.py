"""Are AWS and a ConfigMap read as they are, over real sockets, and is whatever is wrong with them said?

Spot prices come from moto's server.  It has no price list: that one is a server of ours that answers in the price
list's own form, to the real boto3.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from berth_operator.api import CapacityType, HardwareClass
from berth_operator.prices.aws import AwsPriceError, AwsPrices
from berth_operator.prices.configmap import read_prices
from berth_operator.prices.feed import FeedSettings, PriceFeed
from berth_operator.prices.quotes import Quotes, price
from moto.server import ThreadedMotoServer

GOOD = {"asOf": "2026-11-21T12:00:00Z", "prices": '- {hardwareClass: l4, capacityType: Spot, usdPerHour: "0.31"}\n'}


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class PriceList:
    """The AWS Price List service as far as GetProducts, with prices of our choice."""

    def __init__(self) -> None:
        self.products: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                filters = {f["Field"]: f["Value"] for f in body["Filters"]}
                outer.asked.append(filters)
                found = outer.products.get(filters["instanceType"], [])
                answer = json.dumps({"FormatVersion": "aws_v1", "PriceList": [json.dumps(p) for p in found]}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def sells(self, instance_type: str, usd: str) -> None:
        dimension = {"unit": "Hrs", "pricePerUnit": {"USD": usd}}
        upfront = {"unit": "Quantity", "pricePerUnit": {"USD": "99"}}
        terms = {"OnDemand": {"A": {"priceDimensions": {"A.1": dimension, "A.2": upfront}}}}
        self.products[instance_type] = [{"product": {}, "terms": terms}]

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def price_list() -> Iterator[PriceList]:
    made = PriceList()
    yield made
    made.end()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, moto: str, price_list: PriceList) -> AwsPrices:
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", moto)
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", price_list.url)
    return AwsPrices("us-east-1", timeout_s=5)


def c8g(make_class: Callable[..., HardwareClass], **labels: str) -> HardwareClass:
    selector = {"node.kubernetes.io/instance-type": "c5.xlarge", **labels}
    ways = [{"type": kind, "usdPerHour": "0.17", "selector": selector} for kind in ("OnDemand", "Spot")]
    return make_class("c5", capacity=ways)


def test_on_demand_prices_come_from_the_price_list_of_the_region(
    aws: AwsPrices, price_list: PriceList, make_class: Callable[..., HardwareClass]
) -> None:
    price_list.sells("c5.xlarge", "0.1700000000")
    quotes, failures = aws.quotes([c8g(make_class)])
    quote = quotes["c5", CapacityType.ON_DEMAND]
    assert (quote.usd_per_hour, quote.source) == (Decimal("0.17"), "AWS price list us-east-1")
    assert not failures
    assert price_list.asked[0]["regionCode"] == "us-east-1"
    assert price_list.asked[0]["operatingSystem"] == "Linux"


def test_spot_prices_come_from_the_spot_history_and_motos_absurd_one_moves_nothing(
    aws: AwsPrices, price_list: PriceList, make_class: Callable[..., HardwareClass]
) -> None:
    item = c8g(make_class, **{"topology.kubernetes.io/zone": "us-east-1b"})
    quotes, _ = aws.quotes([item])
    quote = quotes["c5", CapacityType.SPOT]
    assert (quote.usd_per_hour, quote.source) == (Decimal("0.00001"), "AWS spot history us-east-1b")
    found = price([item], Quotes({("c5", CapacityType.SPOT): (quote,)}), quote.as_of).prices["c5", CapacityType.SPOT]
    assert (found.usd_per_hour, found.source) == (Decimal("0.17"), "HardwareClass")
    assert found.refused is not None and "5.88e-05 times" in found.refused


def test_what_aws_does_not_sell_is_said_and_the_rest_is_quoted(
    aws: AwsPrices, price_list: PriceList, make_class: Callable[..., HardwareClass]
) -> None:
    quotes, failures = aws.quotes([c8g(make_class)])
    assert ("c5", CapacityType.ON_DEMAND) not in quotes
    assert ("c5", CapacityType.SPOT) in quotes
    assert failures == ["AWS price list us-east-1: has no price of c5.xlarge"]


def test_classes_of_other_clouds_are_not_asked_about(
    aws: AwsPrices, price_list: PriceList, make_class: Callable[..., HardwareClass]
) -> None:
    ways = [{"type": "OnDemand", "usdPerHour": "1", "selector": {"node.kubernetes.io/instance-type": "a2-highgpu-1g"}}]
    assert aws.quotes([make_class("a100", capacity=ways)]) == ({}, [])
    assert not price_list.asked


def test_aws_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, price_list: PriceList) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", price_list.url)
    aws = AwsPrices("us-east-1", timeout_s=1)
    price_list._server.server_close()
    with pytest.raises(AwsPriceError, match="AWS price list us-east-1: ") as error:
        aws.on_demand("c5.xlarge")
    assert "\n" not in str(error.value)


def test_a_config_map_is_a_list_of_prices_of_one_time() -> None:
    quotes, problems = read_prices("ns/prices", GOOD)
    assert not problems
    quote = quotes["l4", CapacityType.SPOT]
    assert (str(quote.usd_per_hour), quote.source) == ("0.31", "ConfigMap ns/prices")
    assert quote.as_of.isoformat() == "2026-11-21T12:00:00+00:00"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({**GOOD, "asOf": "yesterday"}, "data.asOf: found 'yesterday': write a time such as"),
        ({**GOOD, "asOf": "2026-11-21T12:00:00"}, "needs a time zone"),
        ({"prices": GOOD["prices"]}, "data.asOf: found None"),
        ({**GOOD, "prices": "a: ["}, "is not valid YAML"),
        ({**GOOD, "prices": "- 2026-02-30"}, "is not valid YAML: day is out of range"),
        ({**GOOD, "prices": "a: b"}, "write a list of {hardwareClass, capacityType, usdPerHour}"),
        ({**GOOD, "prices": "- {hardwareClass: l4}"}, "entry 1: found"),
        ({**GOOD, "prices": "- {hardwareClass: l4, capacityType: spot, usdPerHour: '1'}"}, "write OnDemand or Spot"),
        ({**GOOD, "prices": "- {hardwareClass: l4, capacityType: Spot, usdPerHour: 0.31}"}, 'such as "0.638"'),
        ({**GOOD, "prices": "- {hardwareClass: l4, capacityType: Reserved, usdPerHour: '1'}"}, "leave them out"),
        ({**GOOD, "prices": GOOD["prices"] * 2}, "l4 Spot is there twice"),
    ],
)
def test_a_bad_config_map_says_which_entry_and_what_to_write(data: dict[str, str], says: str) -> None:
    _, problems = read_prices("ns/prices", data)
    assert len(problems) == 1
    assert problems[0].startswith("ConfigMap ns/prices: ")
    assert says in problems[0]


def test_one_bad_entry_leaves_the_others() -> None:
    bad = GOOD["prices"] + "- {hardwareClass: a10g, capacityType: Spot, usdPerHour: free}\n"
    quotes, problems = read_prices("ns/prices", {**GOOD, "prices": bad})
    assert list(quotes) == [("l4", CapacityType.SPOT)]
    assert "entry 2" in problems[0]


def test_a_price_of_what_no_class_has_is_said(make_class: Callable[..., HardwareClass]) -> None:
    class Reader:
        async def get(self, *_: Any) -> dict[str, Any]:
            return {"data": GOOD}

    known = list[HardwareClass]()
    reader: Any = Reader()
    feed = PriceFeed(reader, FeedSettings(config_map=("ns", "prices")), lambda: known, lambda: None)
    asyncio.run(feed.ask())
    assert feed.quotes.failures == (), "no class is known yet"
    known.append(make_class("l40s"))
    asyncio.run(feed.ask())
    assert feed.quotes.failures == ("ConfigMap ns/prices: l4 Spot: no HardwareClass has such capacity",)
    known.append(make_class("l4", capacity=[{"type": "Spot", "usdPerHour": "0.3"}]))
    asyncio.run(feed.ask())
    assert feed.quotes.failures == ()
