"""What this project does with a pool from day to day."""

from decimal import Decimal

from catalogue.models import Product
from poolsave import Report, pooled_operation


@pooled_operation(workers=2, transaction="chunk")
def reprice(product: Product, percent: int) -> None:
    product.price = round(product.price * (100 + percent) / 100, 2)
    if product.price <= 0:
        raise ValueError(f"{product.name} would be free")
    product.save()


def reprice_all(percent: int, *, above: Decimal = Decimal(0)) -> Report[None]:
    """Change all prices above a limit, each with a row that says so."""
    return reprice.bind(percent=percent).map(Product.objects.filter(price__gte=above))
