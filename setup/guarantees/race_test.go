//go:build unix && race

package guarantees

const raceDetector = true
