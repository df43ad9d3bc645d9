"""`make test-seeds`: the tests that use what a small policy sampled, on what stands for other machines."""
