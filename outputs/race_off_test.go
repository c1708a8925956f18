//go:build !race

package outputs

const raceDetector = false
