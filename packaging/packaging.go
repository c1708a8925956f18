// Package packaging holds what is installed beside the programs and that the
// programs can show too.
package packaging

import _ "embed"

// Config is the reference configuration: every key, commented out, with its
// meaning and default. `flatctl config default` prints it.
//
//go:embed flatd.toml
var Config string
