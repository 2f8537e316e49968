"""A generated outdoor shop: about 500 items with readable titles, and users whom counting transitions cannot
predict.

The next *category* depends on the last one and the department of the one before; given the last alone it is
spread over four. Inside the category the *item* follows the user's taste (a brand, a colour, a price tier),
which shows only over the whole history. No user buys an item twice. `bayes_ceiling` in `toy_ceiling.py` says
how well a perfect reader of histories can do.

Legend: K categories, P items per category, N = K * P items, M departments, T tastes (brand x colour x tier).
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.sources import SourceData, standard_notes

BRANDS = ("Aurora", "Borealis", "Cairn", "Driftwood", "Ember", "Fjord", "Granite", "Harbor")
COLOURS = ("red", "blue", "green", "black", "orange", "purple", "grey", "yellow")
TIERS = (("budget", 0.6), ("everyday", 1.0), ("premium", 1.7))
DEPARTMENTS = ("Footwear", "Clothing", "Camping", "Gear")
# (department, category, price of the middle tier, features, what it is for)
# There are as many categories in a department as there are departments: `_draw_rule` needs that.
CATEGORIES = (
    ("Footwear", "trail shoes", 90, ("waterproof", "lightweight", "cushioned"), "muddy paths"),
    (
        "Footwear",
        "hiking boots",
        140,
        ("waterproof", "insulated", "high-top"),
        "rocky ground and heavy loads",
    ),
    ("Footwear", "camp sandals", 40, ("quick-drying", "foldable", "padded"), "warm evenings by the water"),
    ("Footwear", "wool socks", 18, ("cushioned", "thin", "knee-high"), "dry feet on every walk"),
    ("Clothing", "rain jacket", 120, ("breathable", "packable", "hooded"), "sudden showers"),
    ("Clothing", "fleece hoodie", 70, ("recycled", "soft", "windproof"), "cold mornings and long drives"),
    ("Clothing", "running shirt", 35, ("reflective", "seamless", "cooling"), "tempo runs and hot days"),
    ("Clothing", "sun hat", 28, ("wide-brim", "crushable", "quick-drying"), "open ridges and bright beaches"),
    ("Camping", "tent", 260, ("two-person", "four-season", "ultralight"), "nights above the tree line"),
    ("Camping", "sleeping bag", 150, ("down-filled", "compact", "extra-warm"), "frosty nights outdoors"),
    ("Camping", "camp stove", 65, ("folding", "windproof", "fast-boiling"), "hot meals far from home"),
    ("Camping", "headlamp", 45, ("rechargeable", "dimmable", "waterproof"), "night walks and early starts"),
    ("Gear", "daypack", 80, ("waterproof", "padded", "roll-top"), "day trips and commuting"),
    ("Gear", "dry bag", 30, ("floating", "lightweight", "clear-window"), "boats, rain and river crossings"),
    ("Gear", "water bottle", 25, ("insulated", "leak-proof", "wide-mouth"), "cold drinks all day"),
    ("Gear", "trekking poles", 75, ("carbon", "folding", "cork-grip"), "steep descents and tired knees"),
)


@dataclass(frozen=True)
class ToyArgs:
    """Size and difficulty of the generated shop; the defaults are what the demo and the tests use."""

    seed: int = field(default=7, metadata={"help": "Seed of items, rules and users."})
    num_users: int = field(default=3000, metadata={"help": "Number of users, one sequence each."})
    items_per_category: int = field(
        default=32, metadata={"help": "Items in each of the 16 categories, at most 64."}
    )
    min_length: int = field(default=6, metadata={"help": "Shortest sequence."})
    max_length: int = field(default=14, metadata={"help": "Longest sequence, at most items_per_category."})
    rule: float = field(default=0.85, metadata={"help": "Probability of the category the last two point at."})
    second_rule: float = field(default=0.08, metadata={"help": "Probability of the runner-up category."})
    taste: float = field(
        default=2.2, metadata={"help": "How strongly brand and colour draw a user (log-odds)."}
    )

    def check(self) -> None:
        if not 1 <= self.items_per_category <= len(BRANDS) * len(COLOURS):
            raise InputError(f"source_args.items_per_category: {self.items_per_category} is outside 1..64")
        if not 3 <= self.min_length <= self.max_length <= self.items_per_category:
            raise InputError(
                f"source_args.min_length: need 3 <= min_length <= max_length <= items_per_category, got "
                f"{self.min_length}, {self.max_length}, {self.items_per_category}"
            )
        if self.num_users < 1:
            raise InputError(f"source_args.num_users: {self.num_users}; give at least 1")
        if min(self.rule, self.second_rule) < 0 or self.rule + self.second_rule > 1:
            raise InputError(
                f"source_args.rule: {self.rule} + second_rule {self.second_rule} is no probability; at most 1"
            )


class ToyShop:
    """The generator: items and rules drawn from the seed, and the distributions the users are drawn from."""

    def __init__(self, args: ToyArgs) -> None:
        args.check()
        self.args = args
        self.num_categories = len(CATEGORIES)
        self.num_items = self.num_categories * args.items_per_category
        rng = np.random.default_rng([args.seed, 0])
        pairs = len(BRANDS) * len(COLOURS)
        # Each category has its own draw of (brand, colour) pairs, so a title occurs once.
        drawn = np.concatenate(
            [rng.choice(pairs, args.items_per_category, replace=False) for _ in CATEGORIES]
        )
        self.category_N = np.repeat(np.arange(self.num_categories), args.items_per_category)
        self.brand_N, self.colour_N = drawn // len(COLOURS), drawn % len(COLOURS)
        self.tier_N = rng.integers(len(TIERS), size=self.num_items)
        self.feature_N = rng.integers(3, size=self.num_items)
        self.price_N = rng.uniform(0.9, 1.1, self.num_items)
        self.log_appeal_N = rng.normal(0.0, 0.2, self.num_items)
        self.department_K = np.array([DEPARTMENTS.index(category[0]) for category in CATEGORIES])
        self.rule_KM, self.second_rule_KM = self._draw_rule(rng), self._draw_rule(rng)

    def _draw_rule(self, rng: np.random.Generator) -> np.ndarray:
        """Category that follows [last category, department of the one before], int64 [K, M].

        Per department of the last category it is a permutation of all categories: (department before last,
        last) -> (department of last, next) is then one to one, so every state stays equally frequent and
        either half alone tells little.
        """
        rule_KM = np.empty((self.num_categories, len(DEPARTMENTS)), dtype=np.int64)
        for department in range(len(DEPARTMENTS)):
            rule_KM[self.department_K == department] = rng.permutation(self.num_categories).reshape(
                -1, len(DEPARTMENTS)
            )
        return rule_KM

    @cached_property
    def taste_weight_TN(self) -> np.ndarray:
        """Unnormalised weight of each item for each taste, float64 [T, N]."""
        brand, colour, tier = np.meshgrid(
            *(np.arange(len(x)) for x in (BRANDS, COLOURS, TIERS)), indexing="ij"
        )
        same = (brand.reshape(-1, 1) == self.brand_N).astype(float) + (colour.reshape(-1, 1) == self.colour_N)
        distance = np.abs(tier.reshape(-1, 1) - self.tier_N)
        return np.exp(self.args.taste * (same - 0.5 * distance) + self.log_appeal_N)

    def category_probability(self, before_last: int, last: int) -> np.ndarray:
        """Distribution of the next category given the last two, float64 [K]."""
        noise = 1.0 - self.args.rule - self.args.second_rule
        probability_K = np.full(self.num_categories, noise / self.num_categories)
        department = self.department_K[before_last]
        probability_K[self.rule_KM[last, department]] += self.args.rule
        probability_K[self.second_rule_KM[last, department]] += self.args.second_rule
        return probability_K

    def catalog(self) -> Catalog:
        rows = []
        for n in range(self.num_items):
            department, category, price, features, purpose = CATEGORIES[self.category_N[n]]
            brand, colour, feature = (
                BRANDS[self.brand_N[n]],
                COLOURS[self.colour_N[n]],
                features[self.feature_N[n]],
            )
            tier, factor = TIERS[self.tier_N[n]]
            rows.append(
                {
                    "item_id": f"P{n:04d}",
                    "title": f"{brand} {feature} {colour} {category}",
                    "description": f"{feature.capitalize()} {category} in {colour} "
                    f"from {brand}'s {tier} range, for {purpose}.",
                    "brand": brand,
                    "categories": [department, category],
                    "price": round(price * factor * self.price_N[n]) - 0.01,
                }
            )
        return Catalog.from_rows(rows)

    def sequences(self) -> list[np.ndarray]:
        """One history per user, oldest first, without repeats."""
        rng = np.random.default_rng([self.args.seed, 1])
        size = self.args.items_per_category
        result = []
        for _ in range(self.args.num_users):
            weight_N = self.taste_weight_TN[rng.integers(len(self.taste_weight_TN))].copy()
            categories = list(rng.integers(self.num_categories, size=2))
            items: list[int] = []
            for step in range(rng.integers(self.args.min_length, self.args.max_length + 1)):
                if step >= 2:
                    probability_K = self.category_probability(categories[-2], categories[-1])
                    categories.append(rng.choice(self.num_categories, p=probability_K))
                first = categories[step] * size
                weight_P = weight_N[first : first + size]
                items.append(first + int(rng.choice(size, p=weight_P / weight_P.sum())))
                weight_N[items[-1]] = 0.0
            result.append(np.array(items, dtype=np.int32))
        return result


def load(args: ToyArgs) -> SourceData:
    """Generate the shop; the notes carry the Bayes ceiling of its test split."""
    from sid_builder.sources.toy_ceiling import bayes_ceiling

    shop = ToyShop(args)
    catalog, sequences = shop.catalog(), shop.sequences()
    interactions = Interactions.leave_one_out([f"user{u:05d}" for u in range(len(sequences))], sequences)
    notes = standard_notes(catalog, interactions) | {
        "split": "leave-one-out",
        "bayes_ceiling_test": bayes_ceiling(shop, interactions, "test"),
    }
    return SourceData(catalog, interactions, notes=notes)
