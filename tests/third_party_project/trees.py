"""Nodes of django-mptt and django-treebeard: created at any place, moved, and removed.

Which node comes first would decide where it goes. So each function begins with the lock of the page about trees, and
siblings are sorted.
"""

from functools import partial

from django.contrib.auth.models import Group

from poolsave import pooled_operation
from tests.third_party_project.models import Category, Page, Section
from tests.third_party_project.work import OBJECTS, Work, fail_some


def name_of(number):
    return f"{number * 7 % len(OBJECTS):02}"  # so that many a node goes between others


def one_at_a_time():
    Group.objects.select_for_update().get(name="customers")


def roots(create):
    Group.objects.create(name="customers")
    for number in range(3):
        create({"name": f"root {number}"})


@pooled_operation(progress=False)
def classify(number):
    one_at_a_time()
    parent = Category.objects.get(name=f"root {number % 3}") if number % 5 else None
    category = Category.objects.create(name=name_of(number), parent=parent)
    if number % 4 == 0:
        category.parent = Category.objects.get(name="root 1")
        category.save()
    if number % 9 == 8:
        category.delete()
    fail_some(number)
    return category.level


def categories():
    places = Category.objects.order_by("tree_id", "lft").values_list(
        "name", "parent__name", "tree_id", "lft", "rght", "level"
    )
    left = list(places)
    Category.objects.rebuild()  # computes all places anew
    return {"categories": left, "rebuilt": list(places.all())}


def place(model, number):
    one_at_a_time()
    if number % 5:
        node = model.objects.add_child(model.objects.get(name=f"root {number % 3}"), {"name": name_of(number)})
    else:
        node = model.objects.add_root({"name": name_of(number)})
    if number % 4 == 0:
        model.objects.move(node, model.objects.get(name="root 1"), "sorted-child")
    if number % 9 == 8:
        node.delete()
    fail_some(number)
    return node.depth


@pooled_operation(progress=False)
def place_page(number):
    return place(Page, number)


@pooled_operation(progress=False)
def place_section(number):
    return place(Section, number)


def nodes(model, *fields):
    """Give all nodes in the order of the tree, and how many treebeard itself finds wrong."""
    rows = []
    for node in model.objects.all():
        parent = model.objects.get_parent(node)
        rows.append((node.name, parent and parent.name, *(getattr(node, field) for field in fields)))
    return {"nodes": rows, "problems": [key for keys in model.objects.find_problems() for key in keys]}


# Three roots and ten objects that succeed, of which one is deleted again.
WORKS = {
    "django-mptt": Work(
        classify,
        categories,
        {"categories": 12, "rebuilt": 12},
        partial(roots, lambda values: Category.objects.create(**values)),
    ),
    "django-treebeard with materialized paths": Work(
        place_page,
        # Not the paths: what is moved or removed leaves a gap in them, and which gap depends on what came before.
        partial(nodes, Page, "depth", "numchild"),
        {"nodes": 12, "problems": 0},
        partial(roots, Page.objects.add_root),
    ),
    "django-treebeard with nested sets": Work(
        place_section,
        partial(nodes, Section, "depth", "tree_id", "lft", "rgt"),
        {"nodes": 12, "problems": 0},
        partial(roots, Section.objects.add_root),
    ),
}
