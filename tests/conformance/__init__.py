"""What every store must do, as classes of tests: a store's own test module subclasses a suite.

It hands in a factory: `make_objects` or `make_index` opens one more handle, as another process would, on a
store that is empty when the test begins. The suite's class attributes say what a server is known not to do;
a subclass turns them off.
"""

import pytest

pytest.register_assert_rewrite("tests.conformance.objects", "tests.conformance.index")
