"""What a fresh process is sent of the caller's Django."""

import pickle

from poolsave._environment.django_setup import DjangoEnvironment

PASSWORD = "hunter2"


def test_environment_hides_a_password_and_still_sends_it(settings):
    """What is shown hides it; what is sent has it."""
    settings.SECRET_KEY = PASSWORD
    environment = DjangoEnvironment.capture()
    assert PASSWORD not in repr(environment)
    packed = pickle.loads(pickle.dumps(environment)).packed
    assert PASSWORD not in repr(packed)
    assert pickle.loads(packed.overridden)["SECRET_KEY"] == PASSWORD
