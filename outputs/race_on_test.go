//go:build race

package outputs

// raceDetector is on: sync.Pool then throws items away at random, and nothing
// can be said about allocations.
const raceDetector = true
