// MetricMonitor with something that is no metric.
#include "common.hpp"

void run() { fulmen::MetricMonitor monitor{5}; }
