// The scan of one discretization, METHOD, in float or double; compiled by ../build.py.
#include "scan_backward.h"

typedef Method<METHOD>::Type TheMethod;

extern "C" void selective_scan_forward(const ScanArguments* a) { scan_forward<TheMethod>(*a); }
extern "C" void selective_scan_backward(const ScanArguments* a, const ScanGradients* grads) {
  scan_backward<TheMethod>(*a, *grads);
}
