// The number that both libraries and dmmlkd_ext/ops/native.py must agree on; it rises when a schema in
// ops.cpp changes.
#pragma once

namespace dmmlkd {

constexpr int interface_number = 6;

}  // namespace dmmlkd
