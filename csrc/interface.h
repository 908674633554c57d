// The number that both libraries and dmmlkd_ext/ops/schemas.py must agree on; it rises when a schema there
// changes.
#pragma once

namespace dmmlkd {

constexpr int interface_number = 6;

}  // namespace dmmlkd
