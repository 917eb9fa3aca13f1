// A header that does not include what it uses: the test of the headers must notice.
#pragma once

inline std::string name() { return "needs another"; }
